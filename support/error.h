// The two kinds of error. UserError: the model, a shape, a file or a flag is
// wrong; its text names the place and the remedy. InternalError: an invariant
// of moec is broken; its text names the source line.
#pragma once
#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace moec {

struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A flag or config error: the driver exits with 2 instead of 1.
struct UsageError : UserError {
  using UserError::UserError;
};

struct InternalError : std::logic_error {
  using std::logic_error::logic_error;
};

template <class... A>
[[noreturn]] void user_error(fmt::format_string<A...> f, A&&... a) {
  throw UserError(fmt::format(f, std::forward<A>(a)...));
}

template <class... A>
[[noreturn]] void usage_error(fmt::format_string<A...> f, A&&... a) {
  throw UsageError(fmt::format(f, std::forward<A>(a)...));
}

[[noreturn]] void internal_error(const char* file, int line,
                                 const char* condition, std::string why);

}  // namespace moec

#define MOEC_CHECK(condition, ...)                           \
  do {                                                       \
    if (!(condition)) [[unlikely]]                           \
      ::moec::internal_error(__FILE__, __LINE__, #condition, \
                             ::fmt::format("" __VA_ARGS__)); \
  } while (0)
