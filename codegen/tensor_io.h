// Between the interpreter's tensors and raw row-major memory.
#pragma once
#include <span>

#include "ir/interpreter.h"

namespace moec {

// `to` has at least the type's bytes; floats are rounded to its dtype.
void store_tensor(const Tensor&, std::span<std::byte> to);
Tensor load_tensor(const Type&, std::span<const std::byte> from);

}  // namespace moec
