#include "ir/type.h"

#include <fmt/ranges.h>

namespace moec {

i64 Type::numel() const {
  i64 n = 1;
  for (i64 d : dims) n *= d;
  return n;
}

std::string to_string(const Type& t) {
  return fmt::format("{}[{}]", dtype_name(t.dtype), fmt::join(t.dims, ","));
}

Dims row_major_strides(const Dims& dims) {
  Dims s(dims.size());
  i64 stride = 1;
  for (i64 i = i64(dims.size()) - 1; i >= 0; --i) {
    s[i] = stride;
    stride *= dims[i];
  }
  return s;
}

}  // namespace moec
