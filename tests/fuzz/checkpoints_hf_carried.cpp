// Any bytes as hf.json: one clear error, or what is written as it was read.
#include "models/moe/hf_checkpoint.h"
#include "support/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  std::string text(reinterpret_cast<const char*>(data), size);
  try {
    auto c = moe::parse_hf_carried(text, "hf.json");
    auto json = moe::to_json(c);
    if (moe::to_json(moe::parse_hf_carried(json, "again")) != json)
      __builtin_trap();
  } catch (const UserError&) {
  }
  return 0;
}
