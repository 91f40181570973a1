// What the kernels of the loss as products over pairs share
// (cross_entropy_pair.cpp): layouts of a chunk's operands, rows of dlogits.
#pragma once
#include <functional>

#include "codegen/cpu/cross_entropy_emit.h"
#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/split_f32.h"

namespace moec {

// Steps of a sum whose pairs, for one panel of columns, stay in L1 or, with
// planes, whose operands stay in L2.
inline constexpr int64_t kLossSteps = 512;

// Sizes and leading dimensions in bytes, except those of the problem. Operands
// B are slabs of kPairStep lanes, which panels divide. A line more keeps rows
// off one set of the caches.
struct LossLayout {
  static constexpr int64_t kLanes = 4 * kPairStep;  // a line of a slab

  const CrossEntropyChunk& c;
  int64_t dim, vocab, tokens;  // padded
  int planes;
  DType dtype;  // of the operands and of dlogits
  int64_t element;
  explicit LossLayout(const CrossEntropyChunk& chunk)
      : c(chunk),
        dim(pair_padded(chunk.spec.dim)),
        vocab(chunk.blocks() * chunk.block),
        tokens(chunk.padded()),
        planes(chunk.spec.bf16 ? 1 : kSplitPlanes),
        dtype(chunk.spec.bf16 ? DType::BF16 : DType::F32),
        element(dtype_size(dtype)) {}
  bool split() const { return planes > 1; }
  // `n` elements of the sum in a slab and in a row of an operand A.
  int64_t slab(int64_t n) const { return n / 2 * planes * kLanes; }
  int64_t row(int64_t n) const { return 2 * n * planes; }
  int64_t panel_bytes() const { return 4 * c.panel; }  // of sums
  int64_t block_sums() const { return c.block * panel_bytes(); }
  // dlogits: [step of tokens][row][token], the blocks of a task on many sets
  int64_t logits_row() const { return element * kPairStep; }
  int64_t logits_step() const {
    return (c.blocks() | 1) * c.block * logits_row();
  }
  int64_t dlogits_ld() const { return row(tokens) + 64; }  // in planes
  int64_t weights_ld() const {                             // transposed
    return row(split() ? kLossSteps : vocab) + 64;
  }

  PairRows rows(V base, int64_t stride, V count, int64_t channels) const {
    return {base, stride, count, channels, planes};
  }
  // The panel from `lane` on in slabs of `n` elements, from element `k` on.
  V panel(Emit& e, V slabs, int64_t n, V lane, V k) const {
    V at = e.mul(e.lshr(lane, e.i(5)), slab(n));
    at = e.add(at, e.mul(k, slab(kPairStep) / kPairStep));
    V in = e.and_(lane, e.i(kPairStep - 1));
    return e.at(e.at(slabs, at, 1), in);
  }
  // Operands A of rows `lda` apart and B, a panel of a slab.
  PairProduct product(V a, int64_t lda, V b, V sums) const {
    PairProduct m{a, lda, b, kLanes, sums, panel_bytes()};
    m.a_step = row(kPairStep), m.planes = planes;
    return m;
  }
};

// The rows of a block that exist, from `first` on.
V loss_block_rows(Emit&, const CrossEntropyChunk&, V first);
// Calls f(token of the chunk, row of the block) for targets in the block.
void for_loss_targets(Emit&, V targets, V from, V to, V first, V n,
                      const std::function<void(V t, V row)>& f);

struct LossRows {
  Emit& e;
  const CrossEntropyChunk& c;
  const LossLayout l;
  V stats, logits;  // the latter of the block
  V first, n;       // its rows

  LossRows(Emit& emit, const CrossEntropyChunk& chunk, V stats_at, V logits_at)
      : e(emit), c(chunk), l(chunk), stats(stats_at) {
    first = e.mul(e.task(), c.block), n = loss_block_rows(e, c, first);
    logits = e.at(logits_at, e.mul(first, l.logits_row()), 1);
  }
  V stat(CrossEntropyChunk::Row r, V t) const {
    return e.at(e.at(stats, c.stat(r)), t);
  }
  // Row `v` of the block, tokens from `t` on, which stay in one step.
  V at(V v, V t) const {
    V step = e.mul(e.lshr(t, e.i(5)), l.logits_step());
    V row = e.at(e.at(logits, step, 1), e.mul(v, l.logits_row()), 1);
    return e.at(row, e.and_(t, e.i(kPairStep - 1)), l.element);
  }
  V load(V v, V t) const { return e.vload(l.dtype, at(v, t)); }
  void store(V x, V v, V t) const { e.vstore(l.dtype, x, at(v, t)); }

  // p - 1 of each target among the tokens, from its f32 logit.
  void store_targets(V targets, V from, V to) const {
    for_loss_targets(e, targets, from, to, first, n, [&](V t, V row) {
      auto of = [&](CrossEntropyChunk::Row r) {
        return e.load(DType::F32, stat(r, t));
      };
      V scale = of(CrossEntropyChunk::kScale);
      V p = exp2_fast(e, e.sub(of(CrossEntropyChunk::kTarget),
                               of(CrossEntropyChunk::kLse)));
      e.store(l.dtype, e.sub(e.mul(p, scale), scale), at(row, t));
    });
  }
};

// Where a chunk's sums of the weights' gradient go: f32 between chunks.
struct LossOrder {
  bool first, last;
};

// A task of dX owns some tokens and channels: many of these, since for each
// block of channels it makes the pairs of its tokens again.
inline constexpr int64_t kLossDxTokens = 8 * kPairStep;
struct LossDxTasks {
  int64_t splits, channels, tasks;
  explicit LossDxTasks(const CrossEntropyChunk& c)
      : splits((c.spec.dim + most(c) - 1) / most(c)),
        channels(pair_padded((c.spec.dim + splits - 1) / splits)),
        tasks((c.padded() + kLossDxTokens - 1) / kLossDxTokens * splits) {}
  // Of a panel's sums and the weights of kLossSteps, which planes make larger.
  static int64_t most(const CrossEntropyChunk& c) {
    return c.spec.bf16 ? 512 : 384;
  }
  // Sums, pairs and, with planes, the transposed weights.
  int64_t sums() const { return 4 * kLossDxTokens * channels; }
  int64_t scratch(const LossLayout& l) const {
    return sums() + l.slab(kLossSteps) +
           (l.split() ? channels * l.weights_ld() : 0);
  }
};

// Buffers: X pairs, targets, stats, dlogits, sums, bias sums, dW, dbias.
void emit_pair_dw(Emit&, const CrossEntropyChunk&, LossOrder);
// Buffers: W^T, with planes W; dlogits, dX.
void emit_pair_dx(Emit&, const CrossEntropyChunk&);

}  // namespace moec
