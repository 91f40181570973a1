// A look at what a function computes, launch by launch, and what finds the
// first value that is not finite.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "support/dtype.h"

namespace moec {

// One result of an op, just after it was computed.
struct WatchedResult {
  std::string_view label;   // op and scope path: "matmul layer0/attn"
  std::string_view source;  // the model's line, "ffn.cpp:41"; may be empty
  DType dtype;
  std::span<const std::byte> bytes;
};
using Watch = std::function<void(const WatchedResult&)>;

struct NonFinite {
  std::string label, source;
  int64_t element = 0;  // the first such one, in row-major order
  int64_t bad = 0, elements = 0;
  double value = 0;
};

// Keeps the first result that holds NaN or +infinity. Masks write -infinity,
// which is no fault where it stands.
class NonFiniteWatch {
 public:
  void operator()(const WatchedResult& result);
  const std::optional<NonFinite>& first() const { return first_; }

 private:
  std::optional<NonFinite> first_;
};

// "matmul layer0/attn (ffn.cpp:41): 12 of 4096 values, the first one (nan) at
// element 7".
std::string to_string(const NonFinite& found);

}  // namespace moec
