// The output projection and its cross entropy in chunks of tokens, on f32 or
// bf16: the [tokens, vocab] logits never exist at once. Tokens stand in the
// lanes, so that logits^T, dlogits^T in place, dW += dlogits^T X and dX^T = W^T
// dlogits^T run from the same buffer, and each logit is exponentiated once. By
// FMAs W is broadcast from its plain layout; products over pairs, of bf16 or in
// tile registers, are in cross_entropy_pair.cpp.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "codegen/cpu/kernel.h"
#include "codegen/cpu/target.h"

namespace moec {

enum class CrossEntropyMode : uint8_t {
  Loss,  // loss and lse
  Grad,  // gradients, from lse and dloss
  Both,  // loss, lse and gradients, from dloss
};

struct CrossEntropySpec {
  int64_t tokens = 1, vocab = 1, dim = 1;
  bool bias = false;
  CrossEntropyMode mode = CrossEntropyMode::Both;
  bool bf16 = false;  // x, w, the bias and their gradients; the rest is f32
};

enum class CrossEntropyBuffer : uint8_t {
  X,        // [tokens, dim]
  W,        // [vocab, dim]
  Targets,  // i32 [tokens], -1: ignored
  Bias,     // [vocab]; any buffer if there is none
  Dloss,
  Loss,
  Lse,  // [tokens]
  Dx,
  Dw,
  Dbias,
  // Workspaces for one chunk.
  Logits,
  Xt,
  Stats,
  // And as products over pairs, in bf16 the last three for all chunks.
  XPairs,
  Wt,
  Sums,
  BiasSums,
};

struct CrossEntropyLaunch {
  KernelSpec spec;
  std::vector<CrossEntropyBuffer> buffers;
  std::vector<int64_t> offsets;  // bytes into each
};

struct CrossEntropyPlan {
  std::vector<CrossEntropyLaunch> launches;
  std::vector<std::pair<CrossEntropyBuffer, int64_t>> workspaces;  // bytes
};

// Whether as products over pairs: bf16, and f32 that gains by tile registers.
bool cross_entropy_in_pairs(const CrossEntropySpec&, const Target&);
// Tokens of which logits exist at a time.
int64_t cross_entropy_chunk(const CrossEntropySpec&, const Target&);

CrossEntropyPlan cross_entropy_plan(const CrossEntropySpec&, const Target&);

}  // namespace moec
