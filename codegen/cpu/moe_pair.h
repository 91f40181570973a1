// Set-up that the expert kernels on bf16 and on split f32 share. As in
// moe_forward.cpp, slots stand in the lanes and weights are the broadcast
// operand, here the tiles' left one; each product sums over pairs
// (pair_tile.h), so its right operand holds two neighbours along the sum in a
// dword. What one product leaves in rows of slots becomes the next one's pairs
// by one conversion of two rows.
#pragma once
#include <string>

#include "codegen/cpu/moe_emit.h"
#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/split_f32.h"
#include "codegen/cpu/split_job.h"

namespace moec {

inline int pair_planes(const MoeSpec& s) { return s.bf16 ? 1 : kSplitPlanes; }
// Whether widths are whole tiles.
inline bool pair_weights_fit(const MoeSpec& s) {
  return s.dim % kPairStep == 0 && s.hidden % kPairStep == 0;
}
// What a task takes: slots, in whole panels, and features fused at a time, so
// that tokens, activations of a block and what is summed over blocks, which
// takes sums_bytes, stay in L2.
struct PairCut {
  int64_t features, slots, sums_bytes;
};
PairCut pair_cut(const MoeSpec&, bool backward);

struct PairExperts {
  static constexpr int64_t kPanel = 32;    // slots
  static constexpr int64_t kBlock = 4096;  // bytes of 32 x 32 sums in f32

  Emit& e;
  const MoeSpec& s;
  const MoeBuffers buffer;
  const PairCut fit;
  const bool gated = is_gated(s.activation);
  const int planes = pair_planes(s);
  const DType dtype = s.bf16 ? DType::BF16 : DType::F32;
  const int64_t size = dtype_size(dtype);
  // Widths padded with zeros to whole tiles.
  const int64_t dim = pair_padded(s.dim), hidden = pair_padded(s.hidden);
  // Bytes of a panel as pairs, of a block of features.
  const int64_t x_panel = dim * 64 * planes;
  const int64_t h_panel = pair_padded(fit.features) * 64 * planes;

  SlotCut cut() const { return {fit.slots, kPanel}; }
  // Whether blocks of split weights are made beside the products of the block
  // before.
  const bool ahead = planes > 1 && pair_weights_fit(s);

  V part(int64_t offset) { return e.at(e.scratch(), offset, 1); }
  // Element `index` of a buffer of the dtype.
  V element(MoeBuffer b, V index) { return e.at(buffer(b), index, size); }
  // Where row `row` of 32 slots begins.
  V row(MoeBuffer b, V row) { return element(b, e.mul(row, kPanel)); }
  // 32 slots of a row in two vectors, and as the next product's operand two
  // rows' pairs of lanes() slots.
  void store_row(V low, V high, V to, V exists);
  void store_pairs(const Vs& low, const Vs& high, V to);
  // What the latter takes: f32 in planes.
  Vs in_planes(V x) { return planes > 1 ? split_f32(e, x) : Vs{x}; }
  // f(first slot, how many exist, number) for each panel of `count` slots.
  void for_panels(V count, const std::function<void(V, V, V)>& f);
  // f(first, how many rows exist) for blocks of 32 rows of `n`, padded.
  void for_blocks(int64_t n, const std::function<void(V, V)>& f);
  // f(first, how many) for blocks of features.
  void for_features(const std::function<void(V, int64_t)>& f);
  // What a task sums over the blocks of features: the 32 channels from c on of
  // a panel; the product that adds the part of the block `from` to it; and what
  // becomes of it after the last one.
  V sum_block(V sums, V number, V c);
  void add_product(V from, V valid, int64_t width, SplitKind job, V record,
                   const Vs& args);
  void if_last(V from, int64_t width, const std::function<void()>& f);
  // Elements from row to row of a weight with rows of n, as packed for bf16.
  int64_t row_length(int64_t n) const { return s.bf16 ? pair_padded(n) : n; }

  // gather(src, perm, valid, dst): a panel's rows of src as pairs.
  Fn gather();
  // Zeroes the pairs of a block of 32 rows from the even row `from` on.
  void zero_rows(V pairs, V from);
  // `rows` rows of `columns` elements from `weight` on, `stride` elements
  // apart, as a left operand: f32 is split to dst, 32 rows.
  V weight_rows(V weight, V rows, int64_t columns, int64_t stride, V dst);
  // With `ahead`: 32 rows of one weight, or of two, as a left operand.
  SplitSource weights(V first, V second, int64_t stride, int64_t length);
  // The operand whose job is at `record`, in one of two buffers of `size`
  // bytes, and starts the job for `next`, to be done in `turns` turns, where
  // `more` holds.
  V take_operand(V record, V buffers, int64_t size, SplitKind kind,
                 const SplitSource& next, V more, V turns);
  // A task's operands in their order: for each block of features those of 32
  // features, then those of 32 channels.
  struct WeightBlocks {
    V record, buffers;
    SplitKind kind;
    std::function<SplitSource(V feature)> features;
    std::function<SplitSource(V channel, V from, int64_t width)> channels;
  };
  void start_weights(const WeightBlocks&);
  // That of the features from `from + block` on, or the channels from `c` on.
  V take_features(const WeightBlocks&, V from, int64_t width, V block, V turns);
  V take_channels(const WeightBlocks&, V from, int64_t width, V c, V turns);
  // Turns of `products` products over k, each of all the task's panels.
  V split_turns(const ExpertTask&, int64_t k, int64_t products);
  // Bytes of one for weights.
  static int64_t weights_bytes(const MoeSpec&, const PairCut&);
  // product(A, B, C, k, accumulate): 32 x 32 of C (+)= A B; B has 32 lanes. A's
  // rows are `width` elements apart, or are panels of 32 slots a_step elements
  // apart. With a job its record is a sixth argument; with `fetch` the last is
  // where the sums will go, 32 rows so many bytes apart, which is asked for. Of
  // C's two vectors the second may be left zero.
  Fn product(int64_t width, int64_t a_step = 0, SplitKind job = SplitKind::None,
             int64_t fetch = 0, int vectors = 2);
  // Calls it with A, B, C and k for `valid` slots in the lanes: the half
  // without any is zero.
  void call_product(V valid, int64_t width, V accumulate, SplitKind job,
                    V record, Vs args);
  // flip(C, bias, dst, lanes): dst[lane][row] = C[row][lane] + bias[row] for
  // `rows` rows of C and the first `lanes` lanes; stride in elements.
  Fn flip(int rows, bool bias, int64_t stride);
  // Calls flip for the rows from `first` of s.dim or s.hidden.
  void call_flip(int64_t n, V first, bool bias, int64_t stride, const Vs& args);
};

// The launch for the weights' gradients.
MoeLaunch moe_pair_weights(const MoeSpec&);

}  // namespace moec
