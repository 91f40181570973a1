// The loss as products over pairs (pair_tile.h) with f32 sums and statistics:
// of bf16 operands, or of f32 ones split in three planes where there are tile
// registers. Of a chunk of tokens there is one copy of dlogits: its rows are an
// operand of dW = dlogits^T X, and the tasks of dX^T = W^T dlogits^T make its
// pairs. Each task splits what it uses, except X; bf16's W is transposed once
// for all chunks.
#include "codegen/cpu/cross_entropy_pair.h"

#include <fmt/format.h>

namespace moec {

V loss_block_rows(Emit& e, const CrossEntropyChunk& c, V first) {
  return e.min(e.i(c.block), e.sub(e.i(c.spec.vocab), first));
}

void for_loss_targets(Emit& e, V targets, V from, V to, V first, V n,
                      const std::function<void(V t, V row)>& f) {
  e.loop(from, to, 1, [&](V t) {
    V target = e.sext(e.load(DType::I32, e.at(targets, t)), Ty::I64);
    V row = e.sub(target, first);
    e.if_(e.and_(e.ge(row, e.i(0)), e.lt(row, n)), [&] { f(t, row); });
  });
}

namespace {

using B = CrossEntropyBuffer;
using Chunk = CrossEntropyChunk;

// Buffers: W, W^T.
void emit_weights(Emit& e, const Chunk& c) {
  const LossLayout l(c);
  V first = e.mul(e.task(), c.block);
  PairRows rows =
      l.rows(e.buffer(0), c.spec.dim, e.i(c.spec.vocab), c.spec.dim);
  pack_transposed(e, rows, first, e.i(c.block), e.at(e.buffer(1), first, 2),
                  l.weights_ld());
}

// Buffers: X, its columns in slabs of tokens, its pairs in slabs of channels.
void emit_pack(Emit& e, const Chunk& c) {
  const LossLayout l(c);
  const int64_t d = c.spec.dim;
  V first = e.mul(e.task(), kPairStep), count = e.i(c.count);
  PairRows rows = l.rows(e.buffer(0), d, count, d);
  V columns = e.at(e.buffer(1), e.mul(e.task(), l.slab(l.dim)), 1);
  for (int64_t j = 0; j < kPairStep; j += e.lanes())
    pack_columns(e, rows, e.add(first, j), e.at(columns, j), l.kLanes);
  if (!c.keeps_logits()) return;
  auto pairs = [&](V channel, int64_t width) {
    V from = e.at(e.buffer(0), channel, l.element);
    pack_interleaved(e, l.rows(from, d, count, width), first, e.i(kPairStep),
                     l.panel(e, e.buffer(2), l.tokens, channel, first),
                     l.kLanes);
  };
  const int64_t whole = d / kPairStep * kPairStep;
  e.loop(e.i(0), e.i(whole), kPairStep, [&](V j) { pairs(j, kPairStep); });
  if (whole < d) pairs(e.i(whole), d - whole);
}

// Buffers: W, bias, targets, X columns, stats, dlogits.
void emit_logits(Emit& e, const Chunk& c) {
  const LossRows rows(e, c, e.buffer(4), e.buffer(5));
  const LossLayout& l = rows.l;
  const int L = e.lanes();
  const bool known = c.spec.mode == CrossEntropyMode::Grad;  // lse is there
  V first = rows.first, n = rows.n;
  V packed = e.scratch(), sums = e.at(packed, c.block * l.row(l.dim), 1);
  auto pack = [&] {
    pack_plain(e,
               l.rows(e.buffer(0), c.spec.dim, e.i(c.spec.vocab), c.spec.dim),
               first, e.i(c.block), packed, l.row(l.dim));
  };
  V weights = packed;
  if (l.split() || l.dim != c.spec.dim) {
    pack();
  } else {  // in place if the block needs no padding
    V whole = e.eq(n, e.i(c.block));
    e.if_(e.not_(whole), pack);
    V plain = e.at(e.buffer(0), e.mul(first, c.spec.dim), 2);
    weights = e.select(whole, plain, packed);
  }
  V at_block = e.mul(e.task(), c.padded());
  begin_pairs(e);
  e.loop(e.i(0), e.i(c.padded()), c.panel, [&](V t) {
    pair_product(e,
                 l.product(weights, l.row(l.dim),
                           l.panel(e, e.buffer(3), l.dim, t, e.i(0)), sums),
                 e.i(c.block), e.i(l.dim), e.i1(false));
    auto sum_at = [&](V v, int j) {
      return e.at(sums, e.add(e.mul(v, c.panel), j * L));
    };
    // logits in base 2, in place
    Vs best(2, e.splat(e.f(-1e30)));
    best = e.loop(e.i(0), n, 1, best, [&](V v, Vs m) {
      // what the exponentials will be stored to
      for (int64_t at = 0; c.keeps_logits() && at < l.logits_row(); at += 64)
        e.prefetch(e.at(rows.at(v, t), at, 1), 3, true);
      V bias = nullptr;
      if (c.spec.bias)
        bias = e.load(l.dtype, e.at(e.buffer(1), e.add(first, v), l.element));
      for (int j = 0; j < 2; ++j) {
        V x = e.vload_aligned(DType::F32, sum_at(v, j));
        if (bias) x = e.add(x, bias);
        x = e.mul(x, e.f(kLog2e));
        e.vstore_aligned(DType::F32, x, sum_at(v, j));
        m[j] = e.max(x, m[j]);
      }
      return m;
    });
    V end = e.min(e.add(t, c.panel), e.i(c.count));
    for_loss_targets(e, e.buffer(2), t, end, first, n, [&](V token, V row) {
      V lane = e.sub(token, t);
      V x = e.load(DType::F32, e.at(sums, e.add(e.mul(row, c.panel), lane)));
      e.store(DType::F32, x, rows.stat(Chunk::kTarget, token));
    });
    auto exponential = [&](V v, int j, V shift) {
      return exp2_fast(e,
                       e.sub(e.vload_aligned(DType::F32, sum_at(v, j)), shift));
    };
    auto zero_rest = [&] {
      e.loop(n, e.i(c.block), 1, [&](V v) {
        for (int j = 0; j < 2; ++j)
          rows.store(e.zero(Ty::F32, 0), v, e.add(t, j * L));
      });
    };
    if (c.keeps_logits()) zero_rest();
    if (known) {
      Vs lse, scale;
      for (int j = 0; j < 2; ++j) {
        V at = e.add(t, j * L);
        // nothing of tokens that are not there
        V exists = e.mask(e.sub(e.i(c.count), at));
        V of = e.vload(DType::F32, rows.stat(Chunk::kLse, at));
        lse.push_back(e.select(exists, of, e.splat(e.f(1e30))));
        scale.push_back(e.vload(DType::F32, rows.stat(Chunk::kScale, at)));
      }
      e.loop(e.i(0), n, 1, [&](V v) {
        for (int j = 0; j < 2; ++j)
          rows.store(e.mul(exponential(v, j, lse[j]), scale[j]), v,
                     e.add(t, j * L));
      });
      return rows.store_targets(e.buffer(2), t, end);
    }
    Vs sum(2, e.zero(Ty::F32, 0));
    sum = e.loop(e.i(0), n, 1, sum, [&](V v, Vs s) {
      for (int j = 0; j < 2; ++j) {
        V x = exponential(v, j, best[j]);
        if (c.keeps_logits()) rows.store(x, v, e.add(t, j * L));
        s[j] = e.add(s[j], x);
      }
      return s;
    });
    for (int j = 0; j < 2; ++j) {
      V at = e.add(e.add(at_block, t), j * L);
      e.vstore(DType::F32, best[j],
               e.at(rows.stats, e.add(at, e.i(c.maxima()))));
      e.vstore(DType::F32, sum[j], e.at(rows.stats, e.add(at, e.i(c.sums()))));
    }
  });
  end_pairs(e);
}

}  // namespace

CrossEntropyPlan cross_entropy_pair_plan(const CrossEntropySpec& s,
                                         const Target& target) {
  const bool grads = s.mode != CrossEntropyMode::Loss;
  const int64_t chunk = cross_entropy_chunk(s, target);
  const int64_t panel = panel_lanes(target);
  auto part = [&](int64_t t0) {
    Chunk c(s, std::min(chunk, s.tokens - t0), panel);
    // whole steps of the sums over tokens and over the vocabulary
    c.room = pair_padded(c.count);
    c.block = std::clamp<int64_t>(pair_padded((s.vocab + 7) / 8), 32, 128);
    return c;
  };
  const Chunk whole = part(0);
  const LossLayout l(whole);
  // sums of several chunks are f32, as the results may be
  const bool several = s.tokens > chunk, sums = several && s.bf16;
  CrossEntropyPlan plan;
  auto room = [&](B b, int64_t bytes) {
    plan.workspaces.push_back({b, bytes});
  };
  room(B::Xt, l.tokens / kPairStep * l.slab(l.dim));
  room(B::Stats, 4 * whole.stats_size());
  if (grads) {
    room(B::XPairs, l.dim / kPairStep * l.slab(l.tokens));
    if (!l.split()) room(B::Wt, l.dim * l.weights_ld());
    room(B::Logits, l.tokens / kPairStep * l.logits_step());
    if (sums) room(B::Sums, 4 * s.vocab * s.dim);
    if (sums && s.bias) room(B::BiasSums, 4 * s.vocab);
  }
  const B dw_sums = sums ? B::Sums : B::Dw;
  const B dbias_sums = sums && s.bias ? B::BiasSums : B::Dbias;

  const double element = double(l.element);
  const double weights = element * double(s.vocab * s.dim);
  auto add = [&](const Chunk& c, int64_t t0, const std::string& phase,
                 std::vector<B> buffers, int64_t tasks, int64_t scratch,
                 double products, double bytes,
                 std::function<void(Emit&)> emit) {
    CrossEntropyLaunch launch;
    launch.spec.key = cross_entropy_key(c, phase);
    launch.spec.tasks = tasks;
    launch.spec.scratch_bytes = scratch;
    launch.spec.flops =
        products * 2.0 * double(c.count) * double(s.vocab * s.dim);
    launch.spec.bytes = bytes;
    launch.spec.emit = std::move(emit);
    launch.offsets = cross_entropy_offsets(s, buffers, t0);
    launch.buffers = std::move(buffers);
    plan.launches.push_back(std::move(launch));
  };
  if (grads && !l.split())
    add(whole, 0, "weights", {B::W, B::Wt}, whole.blocks(), 0, 0, 2 * weights,
        [c = whole](Emit& e) { emit_weights(e, c); });
  for (int64_t t0 = 0; t0 < s.tokens; t0 += chunk) {
    const Chunk c = part(t0);
    const LossLayout l(c);
    const double logits = element * double(c.count * s.vocab);
    const B x_pairs = grads ? B::XPairs : B::Xt;
    add(c, t0, "pack", {B::X, B::Xt, x_pairs}, l.tokens / kPairStep, 0, 0,
        (element + 4 * l.planes) * double(c.count * s.dim),
        [c](Emit& e) { emit_pack(e, c); });
    if (s.mode == CrossEntropyMode::Grad)
      add(c, t0, "rows", {B::Targets, B::Dloss, B::Lse, B::Stats}, 1, 0, 0,
          12.0 * double(c.count),
          [c](Emit& e) { emit_cross_entropy_rows(e, c); });
    add(c, t0, "logits",
        {B::W, B::Bias, B::Targets, B::Xt, B::Stats,
         grads ? B::Logits : B::Stats},
        c.blocks(), c.block * l.row(l.dim) + l.block_sums(), 1,
        weights + (grads ? logits : 0), [c](Emit& e) { emit_logits(e, c); });
    if (s.mode != CrossEntropyMode::Grad)
      add(c, t0, "lse", {B::Targets, B::Stats, B::Loss, B::Lse, B::Dloss},
          c.panels(), 0, 0, 8.0 * double(c.blocks() * c.count),
          [c](Emit& e) { emit_cross_entropy_lse(e, c); });
    if (!grads) continue;
    const LossOrder order{t0 == 0, t0 + chunk >= s.tokens};
    const std::string name = fmt::format("dw{}{}", order.first ? " first" : "",
                                         order.last ? " last" : "");
    add(c, t0, name,
        {B::XPairs, B::Targets, B::Stats, B::Logits, dw_sums, dbias_sums, B::Dw,
         B::Dbias},
        c.blocks(), l.block_sums() + (l.split() ? c.block * l.dlogits_ld() : 0),
        1, 2 * logits + (order.first ? 1 : 2) * weights,
        [c, order](Emit& e) { emit_pair_dw(e, c, order); });
    const LossDxTasks dx(c);
    add(c, t0, "dx", {l.split() ? B::W : B::Wt, B::Logits, B::Dx}, dx.tasks,
        dx.scratch(l), 1, logits + weights,
        [c](Emit& e) { emit_pair_dx(e, c); });
  }
  return plan;
}

}  // namespace moec
