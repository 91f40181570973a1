// f32 products in tile registers of bf16: each operand is the exact sum of
// three bf16, x = high + mid + low, and of the nine products of two such sums
// the six largest are added up in f32. What is left out is below 2^-24 of the
// product, less than its own rounding in f32. Products of infinite numbers, and
// of those above bf16's largest (3.39e38), are NaN; denormals count as zero.
// Source: Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial
// Intelligence Datatype For Higher-Precision Computations", ARITH 2019; XLA
// calls the algorithm BF16_BF16_F32_X6.
#pragma once
#include <functional>

#include "codegen/cpu/emit.h"

namespace moec {

inline constexpr int kSplitPlanes = 3;

// The three parts of f32 values, largest first, each with an empty low half.
Vs split_f32(Emit&, V x);
// A plane's bf16 of two such vectors: side by side in dwords, `low` in the low
// half, or as i16 one vector after the other.
V join_pair(Emit&, V low, V high);
V join_row(Emit&, V first, V second);
// All planes of two f32 vectors, joined in these two ways, and their places,
// `distance` bytes apart.
Vs split_pair(Emit&, V low, V high);
Vs split_row(Emit&, V first, V second);
void store_planes(Emit&, const Vs& planes, V to, int64_t distance, int align);
// put(r, planes) for lanes() rows of 2 * lanes() elements that stand in
// columns: load(first, k) is the column `first` + k, of which k counts lanes().
void split_turned(Emit&, const std::function<V(V first, int k)>& load,
                  const std::function<void(V r, const Vs& planes)>& put);

}  // namespace moec
