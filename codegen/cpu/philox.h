// The random numbers of support/rng.h on vectors, bit for bit.
#pragma once
#include <array>

#include "codegen/cpu/emit.h"

namespace moec {

// `block`: vector of i64 block numbers; `key`: two scalars. Four words each.
std::array<V, 4> emit_philox(Emit&, V block, std::array<V, 2> key,
                             uint64_t stream);
V emit_uniform(Emit&, V word);    // f32 in (0, 1)
V emit_normal(Emit&, V uniform);  // standard normal

}  // namespace moec
