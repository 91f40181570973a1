// The loss as products over pairs (pair_tile.h) with f32 sums and statistics:
// of bf16 operands, or of f32 ones split in three planes where there are tile
// registers. Of a chunk of tokens there is one copy of dlogits: its rows are an
// operand of dW = dlogits^T X, and the tasks of dX^T = W^T dlogits^T make its
// pairs. Each task splits what it uses, except X; bf16's W is transposed once
// for all chunks.
#include <fmt/format.h>

#include "codegen/cpu/cross_entropy_emit.h"
#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/split_f32.h"

namespace moec {

namespace {

using B = CrossEntropyBuffer;
using Chunk = CrossEntropyChunk;
constexpr double kLog2e = 1.44269504088896340736;
// Steps of a sum whose pairs, for one panel of columns, stay in L1 or, with
// planes, whose operands stay in L2.
constexpr int64_t kSteps = 512;

// Sizes and leading dimensions in bytes, except those of the problem. Operands
// B are slabs of kPairStep lanes, which panels divide. A line more keeps rows
// off one set of the caches.
struct Layout {
  static constexpr int64_t kLanes = 4 * kPairStep;  // a line of a slab

  const Chunk& c;
  int64_t dim, vocab, tokens;  // padded
  int planes;
  DType dtype;  // of the operands and of dlogits
  int64_t element;
  explicit Layout(const Chunk& chunk)
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
    return row(split() ? kSteps : vocab) + 64;
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

V block_rows(Emit& e, const Chunk& c, V first) {
  return e.min(e.i(c.block), e.sub(e.i(c.spec.vocab), first));
}

// Buffers: W, W^T.
void emit_weights(Emit& e, const Chunk& c) {
  const Layout l(c);
  V first = e.mul(e.task(), c.block);
  PairRows rows =
      l.rows(e.buffer(0), c.spec.dim, e.i(c.spec.vocab), c.spec.dim);
  pack_transposed(e, rows, first, e.i(c.block), e.at(e.buffer(1), first, 2),
                  l.weights_ld());
}

// Buffers: X, its columns in slabs of tokens, its pairs in slabs of channels.
void emit_pack(Emit& e, const Chunk& c) {
  const Layout l(c);
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

// Calls f(token of the chunk, row of the block) for targets in the block.
void for_targets(Emit& e, V targets, V from, V to, V first, V n,
                 const std::function<void(V t, V row)>& f) {
  e.loop(from, to, 1, [&](V t) {
    V target = e.sext(e.load(DType::I32, e.at(targets, t)), Ty::I64);
    V row = e.sub(target, first);
    e.if_(e.and_(e.ge(row, e.i(0)), e.lt(row, n)), [&] { f(t, row); });
  });
}

struct Rows {
  Emit& e;
  const Chunk& c;
  const Layout l;
  V stats, logits;  // the latter of the block
  V first, n;       // its rows

  Rows(Emit& emit, const Chunk& chunk, V stats_at, V logits_at)
      : e(emit), c(chunk), l(chunk), stats(stats_at) {
    first = e.mul(e.task(), c.block), n = block_rows(e, c, first);
    logits = e.at(logits_at, e.mul(first, l.logits_row()), 1);
  }
  V stat(Chunk::Row r, V t) const { return e.at(e.at(stats, c.stat(r)), t); }
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
    for_targets(e, targets, from, to, first, n, [&](V t, V row) {
      auto of = [&](Chunk::Row r) { return e.load(DType::F32, stat(r, t)); };
      V scale = of(Chunk::kScale);
      V p = exp2_fast(e, e.sub(of(Chunk::kTarget), of(Chunk::kLse)));
      e.store(l.dtype, e.sub(e.mul(p, scale), scale), at(row, t));
    });
  }
};

// Buffers: W, bias, targets, X columns, stats, dlogits.
void emit_logits(Emit& e, const Chunk& c) {
  const Rows rows(e, c, e.buffer(4), e.buffer(5));
  const Layout& l = rows.l;
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
                 e.i(c.block), e.i(l.dim), false);
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
    for_targets(e, e.buffer(2), t, end, first, n, [&](V token, V row) {
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

// Where a chunk's sums of the weights' gradient go: f32 between chunks.
struct Order {
  bool first, last;
};

// dlogits of a block from e^(x - block maximum), a step of tokens from `t` on.
void emit_scale(const Rows& rows, V targets, V t) {
  Emit& e = rows.e;
  const Chunk& c = rows.c;
  const int L = e.lanes();
  V maxima = e.add(e.mul(e.task(), c.padded()), e.i(c.maxima()));
  Vs factor;
  for (int64_t j = 0; j < kPairStep; j += L) {
    V at = e.add(t, j);
    V shift = e.sub(e.vload(DType::F32, e.at(rows.stats, e.add(maxima, at))),
                    e.vload(DType::F32, rows.stat(Chunk::kLse, at)));
    factor.push_back(e.mul(exp2_fast(e, shift),
                           e.vload(DType::F32, rows.stat(Chunk::kScale, at))));
  }
  e.loop(e.i(0), rows.n, 1, [&](V v) {
    for (size_t j = 0; j < factor.size(); ++j) {
      V at = e.add(t, int64_t(j) * L);
      rows.store(e.mul(rows.load(v, at), factor[j]), v, at);
    }
  });
  V end = e.min(e.add(t, kPairStep), e.i(c.count));
  rows.store_targets(targets, t, end);
}

// Buffers: X pairs, targets, stats, dlogits, sums, bias sums, dW, dbias.
void emit_dw(Emit& e, const Chunk& c, Order order) {
  const Rows rows(e, c, e.buffer(2), e.buffer(3));
  const Layout& l = rows.l;
  const int L = e.lanes();
  const int64_t d = c.spec.dim;
  V first = rows.first, n = rows.n;
  V block = e.scratch(), planes = e.at(block, l.block_sums(), 1);
  e.loop(e.i(0), e.i(l.tokens), kPairStep, [&](V t) {
    if (c.spec.mode == CrossEntropyMode::Both) emit_scale(rows, e.buffer(1), t);
    if (l.split())
      pack_plain(e, l.rows(rows.at(e.i(0), t), kPairStep, n, kPairStep), e.i(0),
                 e.i(c.block), e.at(planes, e.mul(t, l.row(1)), 1),
                 l.dlogits_ld());
  });
  auto product_of = [&](V t, V x) {
    if (l.split())
      return l.product(e.at(planes, e.mul(t, l.row(1)), 1), l.dlogits_ld(), x,
                       block);
    PairProduct m = l.product(rows.at(e.i(0), t), l.logits_row(), x, block);
    m.a_step = l.logits_step();
    return m;
  };
  auto finish = [&](V x, V sums, V to, V mask) {
    if (!order.first) x = e.add(x, e.vload(DType::F32, sums, mask));
    if (order.last)
      e.vstore(l.dtype, x, to, mask);
    else
      e.vstore(DType::F32, x, sums, mask);
  };
  begin_pairs(e);
  auto columns = [&](V j, int64_t width) {
    // steps over tokens, so that the columns' pairs stay in L1
    auto product = [&](V t, V steps, bool accumulate) {
      V x = l.panel(e, e.buffer(0), l.tokens, j, t);
      pair_product(e, product_of(t, x), e.i(c.block), steps, accumulate);
    };
    product(e.i(0), e.i(std::min(kSteps, l.tokens)), false);
    e.loop(e.i(kSteps), e.i(l.tokens), kSteps, [&](V t) {
      product(t, e.min(e.i(kSteps), e.sub(e.i(l.tokens), t)), true);
    });
    e.loop(e.i(0), n, 1, [&](V v) {
      V at = e.add(e.mul(e.add(first, v), d), j);
      for (int64_t k = 0; k < width; k += L) {
        V mask = k + L <= width ? nullptr : e.mask(e.i(width - k));
        V x = e.vload_aligned(DType::F32,
                              e.at(block, e.add(e.mul(v, c.panel), k)));
        finish(x, e.at(e.at(e.buffer(4), at), k),
               e.at(e.buffer(6), e.add(at, k), l.element), mask);
      }
    });
  };
  const int64_t whole = d / c.panel * c.panel;
  if (whole)
    e.loop(e.i(0), e.i(whole), c.panel, [&](V j) { columns(j, c.panel); });
  if (whole < d) columns(e.i(whole), d - whole);
  end_pairs(e);
  if (!c.spec.bias) return;
  e.loop(e.i(0), n, 1, [&](V v) {
    Vs zero = {e.zero(Ty::F32, 0)};
    V sum = e.loop(e.i(0), e.i(l.tokens), L, zero, [&](V t, Vs s) {
      return Vs{e.add(s[0], rows.load(v, t))};
    })[0];
    V row = e.add(first, v), total = e.hsum(sum);
    V kept = e.at(e.buffer(5), row);
    if (!order.first) total = e.add(total, e.load(DType::F32, kept));
    if (order.last)
      e.store(l.dtype, total, e.at(e.buffer(7), row, l.element));
    else
      e.store(DType::F32, total, kept);
  });
}

// A task of dX owns some tokens and channels: many of these, since for each
// block of channels it makes the pairs of its tokens again.
constexpr int64_t kDxTokens = 8 * kPairStep;
struct DxTasks {
  int64_t splits, channels, tasks;
  explicit DxTasks(const Chunk& c)
      : splits((c.spec.dim + most(c) - 1) / most(c)),
        channels(pair_padded((c.spec.dim + splits - 1) / splits)),
        tasks((c.padded() + kDxTokens - 1) / kDxTokens * splits) {}
  // Of a panel's sums and the weights of kSteps, which planes make larger.
  static int64_t most(const Chunk& c) { return c.spec.bf16 ? 512 : 384; }
  // Sums, pairs and, with planes, the transposed weights.
  int64_t sums() const { return 4 * kDxTokens * channels; }
  int64_t scratch(const Layout& l) const {
    return sums() + l.slab(kSteps) +
           (l.split() ? channels * l.weights_ld() : 0);
  }
};

// Buffers: W^T, with planes W; dlogits, dX.
void emit_dx(Emit& e, const Chunk& c) {
  const Layout l(c);
  const int L = e.lanes();
  const int64_t d = c.spec.dim;
  const DxTasks tasks(c);
  V from = e.mul(e.rem(e.task(), e.i(tasks.splits)), tasks.channels);
  V channels = e.min(e.i(tasks.channels), e.sub(e.i(l.dim), from));
  V t0 = e.mul(e.div(e.task(), e.i(tasks.splits)), kDxTokens);
  V t1 = e.min(e.add(t0, kDxTokens), e.i(l.tokens));
  V sums = e.scratch(), pairs = e.at(sums, tasks.sums(), 1);
  V planes = e.at(pairs, l.slab(kSteps), 1);
  // f(how many channels), a constant
  auto with_width = [&](const std::function<void(int64_t)>& f) {
    const int64_t last = d - (tasks.splits - 1) * tasks.channels;
    if (last == tasks.channels || tasks.splits == 1) return f(last);
    e.if_(
        e.lt(from, e.i(d - last)), [&] { f(tasks.channels); },
        [&] { f(last); });
  };
  auto sums_of = [&](V t) {
    return e.at(sums, e.mul(e.sub(t, t0), tasks.channels));
  };
  V source = e.at(e.buffer(0), from, l.element);
  begin_pairs(e);
  e.loop(e.i(0), e.i(l.vocab), kSteps, [&](V v) {
    V steps = e.min(e.i(kSteps), e.sub(e.i(l.vocab), v));
    V weights = planes;
    if (l.split())
      with_width([&](int64_t width) {
        pack_transposed(e, l.rows(source, d, e.i(c.spec.vocab), width), v,
                        steps, planes, l.weights_ld());
      });
    else
      weights = e.at(e.at(e.buffer(0), e.mul(from, l.weights_ld()), 1), v, 2);
    e.loop(t0, t1, kPairStep, [&](V t) {
      V dlogits =
          e.at(e.at(e.buffer(1), e.mul(e.lshr(t, e.i(5)), l.logits_step()), 1),
               e.mul(v, l.logits_row()), 1);
      pack_interleaved(e, l.rows(dlogits, kPairStep, steps, kPairStep), e.i(0),
                       steps, pairs, l.kLanes);
      e.loop(e.i(0), e.i(kPairStep), c.panel, [&](V lane) {
        PairProduct m = l.product(weights, l.weights_ld(), e.at(pairs, lane),
                                  sums_of(e.add(t, lane)));
        e.if_(
            e.eq(v, e.i(0)),
            [&] { pair_product(e, m, channels, steps, false); },
            [&] { pair_product(e, m, channels, steps, true); });
      });
    });
  });
  end_pairs(e);
  with_width([&](int64_t width) {
    e.loop(t0, t1, c.panel, [&](V t) {
      V valid = e.sub(e.i(c.count), t);
      V to = e.at(e.buffer(2), e.add(e.mul(t, d), from), l.element);
      for (int j = 0; j < 2; ++j) {
        std::vector<int> row_of;
        for (int k = 0; k < L; ++k) row_of.push_back(j * L + k);
        unpack_columns(e, e.at(sums_of(t), j * L), l.panel_bytes(), width,
                       e.splat(e.f(1)), to, d, valid, row_of, l.dtype);
      }
    });
  });
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
  const Layout l(whole);
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
    const Layout l(c);
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
    const Order order{t0 == 0, t0 + chunk >= s.tokens};
    const std::string name = fmt::format("dw{}{}", order.first ? " first" : "",
                                         order.last ? " last" : "");
    add(c, t0, name,
        {B::XPairs, B::Targets, B::Stats, B::Logits, dw_sums, dbias_sums, B::Dw,
         B::Dbias},
        c.blocks(), l.block_sums() + (l.split() ? c.block * l.dlogits_ld() : 0),
        1, 2 * logits + (order.first ? 1 : 2) * weights,
        [c, order](Emit& e) { emit_dw(e, c, order); });
    const DxTasks dx(c);
    add(c, t0, "dx", {l.split() ? B::W : B::Wt, B::Logits, B::Dx}, dx.tasks,
        dx.scratch(l), 1, logits + weights, [c](Emit& e) { emit_dx(e, c); });
  }
  return plan;
}

}  // namespace moec
