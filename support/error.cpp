#include "support/error.h"

namespace moec {

void internal_error(const char* file, int line, const char* condition,
                    std::string why) {
  throw InternalError(fmt::format("internal error at {}:{}: {} ({})", file,
                                  line, why.empty() ? "check failed" : why,
                                  condition));
}

}  // namespace moec
