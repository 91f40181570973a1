// Any bytes as config.json: one clear error, or a config that is written and
// read as itself; and as generation_config.json.
#include "models/moe/hf_config.h"
#include "support/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  std::string text(reinterpret_cast<const char*>(data), size);
  try {
    moe::read_hf_eos(text, "g");
  } catch (const UserError&) {
  }
  try {
    auto hf = moe::read_hf_config(text, "c");
    auto& family = moe::hf_family_of(hf.config);
    if (&family != hf.family) __builtin_trap();
    // What was imported stays to the byte.
    if (moe::write_hf_config(family, hf.config, text, nullptr) != text)
      __builtin_trap();
    auto fresh = moe::write_hf_config(family, hf.config, "", nullptr);
    auto back = moe::read_hf_config(fresh, "fresh").config;
    back.moe.aux_coef = hf.config.moe.aux_coef;
    if (moe::to_toml(back) != moe::to_toml(hf.config)) __builtin_trap();
  } catch (const UsageError&) {
    __builtin_trap();  // a file is wrong, not a flag
  } catch (const UserError&) {
  }
  return 0;
}
