// The type of a value: an element type and a static shape.
#pragma once
#include <absl/container/inlined_vector.h>

#include <string>

#include "support/dtype.h"

namespace moec {

using i64 = int64_t;
using Dims = absl::InlinedVector<i64, 6>;

struct Type {
  DType dtype = DType::F32;
  Dims dims;  // every dimension >= 0; empty for a scalar

  i64 rank() const { return i64(dims.size()); }
  // Size along `axis`; a negative axis counts from the end.
  i64 dim(i64 axis) const { return dims[axis < 0 ? axis + rank() : axis]; }
  i64 numel() const;
  i64 bytes() const { return numel() * dtype_size(dtype); }
  bool operator==(const Type&) const = default;
};

// "f32[2,4,64]"; a scalar is "f32[]".
std::string to_string(const Type&);

// Row-major strides in elements.
Dims row_major_strides(const Dims&);

}  // namespace moec
