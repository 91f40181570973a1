// Products of few rows, as in decoding: they wait for the weights to come from
// memory, so each weight is read once, as it is stored.
#pragma once
#include "ir/graph.h"

namespace moec {

// Beyond this, packed weights are used often enough to pay.
inline constexpr i64 kFewRows = 8;

// A matmul of rows with a matrix stored [n,k], or experts (moe_ffn) whose
// saved values nothing reads.
bool has_few_rows(const Node&);

}  // namespace moec
