// Routed experts for few tokens, as in decoding: only the chosen experts'
// weights are read, once, as they are stored, in f32 or bf16. Two launches:
// activations of every slot times its routing weight, then the sums over a
// token's slots. Nothing is saved for a backward.
#pragma once
#include <vector>

#include "codegen/cpu/moe.h"
#include "support/dtype.h"

namespace moec {

// Uses MoeBuffer::Activated as a workspace of slots() * hidden elements.
std::vector<MoeLaunch> moe_few(const MoeSpec&, DType weights, const Target&);

}  // namespace moec
