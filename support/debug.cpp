#include "support/debug.h"

#include <cstdlib>
#include <string_view>

#include "support/error.h"

namespace moec {

int debug_level() {
  const char* text = std::getenv("MOEC_DEBUG");
  if (!text || !*text) return 0;
  std::string_view v = text;
  if (v.size() != 1 || v[0] < '0' || v[0] > '5')
    usage_error("MOEC_DEBUG={}: must be from 0 to 5", v);
  return v[0] - '0';
}

}  // namespace moec
