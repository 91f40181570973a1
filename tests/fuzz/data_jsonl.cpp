// Any bytes as JSON lines: one clear error, or at most a text a line, which
// are UTF-8.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/jsonl.h"
#include "support/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  auto lines = std::ranges::count(text, '\n') + 1;
  try {
    for_each_json_line(text, "f", "text", [&](std::string_view s) {
      if (--lines < 0) __builtin_trap();
      (void)nlohmann::json(std::string(s)).dump();  // throws on other bytes
    });
  } catch (const UserError&) {
  }
  return 0;
}
