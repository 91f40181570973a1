// Set-up that the bf16 expert kernels share. As in f32, slots stand in the
// lanes and weights are the broadcast operand, here the tiles' left one; each
// product sums over pairs (pair_tile.h), so its right operand holds two
// neighbours along the sum in a dword. What one product leaves in rows of
// slots becomes the next one's pairs by one conversion of two rows.
#pragma once
#include <string>

#include "codegen/cpu/moe_emit.h"
#include "codegen/cpu/pair_tile.h"

namespace moec {

struct PairExperts {
  static constexpr int64_t kPanel = 32;    // slots
  static constexpr int64_t kTask = 256;    // slots of a task
  static constexpr int64_t kBlock = 4096;  // bytes of 32 x 32 sums in f32
  static constexpr SlotCut kCut = {kTask, kPanel};

  Emit& e;
  const MoeSpec& s;
  const MoeBuffers buffer;
  const bool gated = is_gated(s.activation);
  // Widths padded with zeros to whole tiles.
  const int64_t dim = pair_padded(s.dim), hidden = pair_padded(s.hidden);
  // Bytes of a panel as pairs.
  const int64_t x_panel = dim * 64, h_panel = hidden * 64;

  V part(int64_t offset) { return e.at(e.scratch(), offset, 1); }
  // Element `index` of a bf16 buffer.
  V bf16(MoeBuffer b, V index) { return e.at(buffer(b), index, 2); }
  // f(first slot, how many exist, number) for each panel of `count` slots.
  void for_panels(V count, const std::function<void(V, V, V)>& f);
  // f(first, how many rows exist) for blocks of 32 rows of `n`, padded.
  void for_blocks(int64_t n, const std::function<void(V, V)>& f);

  // gather(src, perm, valid, dst): a panel's rows of src as pairs.
  Fn gather();
  // Zeroes the pairs of a block of 32 rows from the even row `from` on.
  void zero_rows(V pairs, V from);
  // product(A, B, C, k): 32 x 32 of C (+)= A B; B has 32 lanes.
  Fn product(int64_t lda, bool accumulate, int64_t a_step = 2 * kPairStep);
  // flip(C, bias, dst, lanes): dst[lane][row] = bf16(C[row][lane] + bias[row])
  // for `rows` rows of C and the first `lanes` lanes; stride in elements.
  Fn flip(int rows, bool bias, int64_t stride);
  // Calls flip for the rows from `first` of s.dim or s.hidden.
  void call_flip(int64_t n, V first, bool bias, int64_t stride, const Vs& args);
};

// The launch for the weights' gradients.
MoeLaunch moe_pair_weights(const MoeSpec&);

}  // namespace moec
