// The loss on bf16 operands, as products over pairs (pair_tile.h) with f32
// sums and statistics. Of a chunk of tokens two copies of dlogits exist:
// plain rows of the vocabulary for dW = dlogits^T X, and pairs of them for
// dX^T = W^T dlogits. W is transposed once for all chunks.
#include <fmt/format.h>

#include "codegen/cpu/cross_entropy_emit.h"
#include "codegen/cpu/pair_tile.h"

namespace moec {

namespace {

using B = CrossEntropyBuffer;
using Chunk = CrossEntropyChunk;
constexpr double kLog2e = 1.44269504088896340736;
// Steps of a sum whose pairs, for one panel of columns, stay in L1.
constexpr int64_t kSteps = 512;

// Sizes and leading dimensions, those in bytes. A line more keeps rows off one
// set of the caches.
struct Layout {
  const Chunk& c;
  int64_t dim, vocab, tokens;  // padded
  explicit Layout(const Chunk& chunk)
      : c(chunk),
        dim(pair_padded(chunk.spec.dim)),
        vocab(chunk.blocks() * chunk.block),
        tokens(chunk.padded()) {}
  int64_t panel_bytes() const { return 4 * c.panel; }  // of dwords or f32
  int64_t columns() const { return dim / 2 * panel_bytes(); }  // X of a panel
  int64_t pairs() const { return vocab / 2 * panel_bytes(); }
  int64_t plain_ld() const { return 2 * tokens + 64; }
  int64_t weights_ld() const { return 2 * vocab + 64; }
  int64_t block_sums() const { return c.block * panel_bytes(); }
};

V block_rows(Emit& e, const Chunk& c, V first) {
  return e.min(e.i(c.block), e.sub(e.i(c.spec.vocab), first));
}

void emit_weights(Emit& e, const Chunk& c) {
  const Layout l(c);
  V first = e.mul(e.task(), c.block);
  PairRows rows{e.buffer(0), c.spec.dim, e.i(c.spec.vocab), c.spec.dim};
  pack_transposed(e, rows, first, e.i(c.block), e.at(e.buffer(1), first, 2),
                  l.weights_ld());
}

void emit_pack(Emit& e, const Chunk& c) {
  const Layout l(c);
  V first = e.mul(e.task(), c.panel);
  PairRows rows{e.buffer(0), c.spec.dim, e.i(c.count), c.spec.dim};
  V columns = e.at(e.buffer(1), e.mul(e.task(), l.columns()), 1);
  for (int64_t j = 0; j < c.panel; j += e.lanes())
    pack_columns(e, rows, e.add(first, j), e.at(columns, j), l.panel_bytes());
  if (!c.keeps_logits()) return;
  V pairs = e.at(e.buffer(2), e.mul(first, l.dim / 2));
  pack_interleaved(e, rows, first, e.i(c.panel), pairs, 4 * l.dim);
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
  const int L = e.lanes();
  V stats, plain, pairs;  // of the block, the last two of its first row

  V stat(Chunk::Row r, V t) const { return e.at(e.at(stats, c.stat(r)), t); }
  // Row `v` of the block, tokens from `t` on.
  V plain_at(V v, V t) const {
    return e.at(e.at(plain, e.mul(v, l.plain_ld()), 1), t, 2);
  }
  V pairs_at(V p, V v) const {
    return e.at(e.at(pairs, e.mul(p, l.pairs()), 1),
                e.mul(v, l.panel_bytes() / 2), 1);
  }

  // dlogits of rows v and v + 1 (null: zeros) of panel p in both copies.
  void store(V p, V v, const Vs& even, const Vs& odd) const {
    for (int j = 0; j < 2; ++j) {
      V t = e.add(e.mul(p, c.panel), j * L);
      e.vstore(DType::BF16, even[j], plain_at(v, t));
      V second = odd.empty() ? e.zero(Ty::F32, 0) : odd[j];
      if (!odd.empty()) e.vstore(DType::BF16, second, plain_at(e.add(v, 1), t));
      e.store_raw(e.pack_bf16_pair(even[j], second),
                  e.at(pairs_at(p, v), j * L), 4);
    }
  }

  // All rows of panel p below n from `row(v)`; the other pairs are zero.
  void store_all(V p, V n, const std::function<Vs(V v)>& row) const {
    V even = e.and_(n, e.i(-2));
    e.loop(e.i(0), even, 2,
           [&](V v) { store(p, v, row(v), row(e.add(v, 1))); });
    e.if_(e.lt(even, n), [&] { store(p, even, row(even), {}); });
    e.loop(e.and_(e.add(n, 1), e.i(-2)), e.i(c.block), 2, [&](V v) {
      for (int j = 0; j < 2; ++j)
        e.store_raw(e.zero(Ty::I32, 0), e.at(pairs_at(p, v), j * L), 4);
    });
  }

  // p - 1 of each target, from its f32 logit.
  void store_targets(V targets, V first, V n) const {
    for_targets(e, targets, e.i(0), e.i(c.count), first, n, [&](V t, V row) {
      auto of = [&](Chunk::Row r) { return e.load(DType::F32, stat(r, t)); };
      V scale = of(Chunk::kScale);
      V p = exp2_fast(e, e.sub(of(Chunk::kTarget), of(Chunk::kLse)));
      V d = e.sub(e.mul(p, scale), scale);
      e.store(DType::BF16, d, plain_at(row, t));
      V lane = e.rem(t, e.i(c.panel));
      V pair = pairs_at(e.div(t, e.i(c.panel)), e.and_(row, e.i(-2)));
      V half = e.add(e.mul(lane, 2), e.and_(row, e.i(1)));
      e.store(DType::BF16, d, e.at(pair, half, 2));
    });
  }
};

// Buffers: W, bias, targets, X columns, stats, plain, pairs.
void emit_logits(Emit& e, const Chunk& c) {
  const Layout l(c);
  const int L = e.lanes();
  const bool known = c.spec.mode == CrossEntropyMode::Grad;  // lse is there
  V first = e.mul(e.task(), c.block), n = block_rows(e, c, first);
  V stats = e.buffer(4);
  Rows rows{e,
            c,
            l,
            L,
            stats,
            e.at(e.buffer(5), e.mul(first, l.plain_ld()), 1),
            e.at(e.buffer(6), e.mul(first, l.panel_bytes() / 2), 1)};
  // weights in place if they need no padding
  V packed = e.scratch(), sums = e.at(packed, c.block * l.dim, 2);
  V plain = e.at(e.buffer(0), e.mul(first, c.spec.dim), 2);
  PairRows source{e.buffer(0), c.spec.dim, e.i(c.spec.vocab), c.spec.dim};
  auto pack = [&] {
    pack_plain(e, source, first, e.i(c.block), packed, 2 * l.dim);
  };
  V weights = packed;
  if (l.dim == c.spec.dim) {
    V whole = e.eq(n, e.i(c.block));
    e.if_(e.not_(whole), pack);
    weights = e.select(whole, plain, packed);
  } else {
    pack();
  }
  V at_block = e.mul(e.task(), c.padded());
  begin_pairs(e);
  e.loop(e.i(0), e.i(c.panels()), 1, [&](V p) {
    V x = e.at(e.buffer(3), e.mul(p, l.columns()), 1);
    pair_product(
        e, {weights, 2 * l.dim, x, l.panel_bytes(), sums, l.panel_bytes()},
        e.i(c.block), e.i(l.dim), false);
    V t = e.mul(p, c.panel);
    auto sum_at = [&](V v, int j) {
      return e.at(sums, e.add(e.mul(v, c.panel), j * L));
    };
    // logits in base 2, in place
    Vs best(2, e.splat(e.f(-1e30)));
    best = e.loop(e.i(0), n, 1, best, [&](V v, Vs m) {
      // what the exponentials will be stored to
      if (c.keeps_logits()) e.prefetch(rows.plain_at(v, t), 3, true);
      V bias = nullptr;
      if (c.spec.bias)
        bias = e.load(DType::BF16, e.at(e.buffer(1), e.add(first, v), 2));
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
    auto exponentials = [&](V v, const Vs& shift) {
      Vs x;
      for (int j = 0; j < 2; ++j)
        x.push_back(exp2_fast(
            e, e.sub(e.vload_aligned(DType::F32, sum_at(v, j)), shift[j])));
      return x;
    };
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
      return rows.store_all(p, n, [&](V v) {
        Vs x = exponentials(v, lse);
        for (int j = 0; j < 2; ++j) x[j] = e.mul(x[j], scale[j]);
        return x;
      });
    }
    Vs sum(2, e.zero(Ty::F32, 0));
    sum = e.loop(e.i(0), n, 1, sum, [&](V v, Vs s) {
      Vs x = exponentials(v, best);
      for (int j = 0; j < 2; ++j) {
        if (c.keeps_logits())
          e.vstore(DType::BF16, x[j], rows.plain_at(v, e.add(t, j * L)));
        s[j] = e.add(s[j], x[j]);
      }
      return s;
    });
    for (int j = 0; j < 2; ++j) {
      V at = e.add(e.add(at_block, t), j * L);
      e.vstore(DType::F32, best[j], e.at(stats, e.add(at, e.i(c.maxima()))));
      e.vstore(DType::F32, sum[j], e.at(stats, e.add(at, e.i(c.sums()))));
    }
  });
  end_pairs(e);
  if (known) rows.store_targets(e.buffer(2), first, n);
}

// Where a chunk's sums of the weights' gradient go: f32 between chunks.
struct Order {
  bool first, last;
};

// Buffers: X pairs, targets, stats, plain, pairs, sums, bias sums, dW, dbias.
void emit_dw(Emit& e, const Chunk& c, Order order) {
  const Layout l(c);
  const int L = e.lanes();
  const int64_t d = c.spec.dim;
  V first = e.mul(e.task(), c.block), n = block_rows(e, c, first);
  Rows rows{e,
            c,
            l,
            L,
            e.buffer(2),
            e.at(e.buffer(3), e.mul(first, l.plain_ld()), 1),
            e.at(e.buffer(4), e.mul(first, l.panel_bytes() / 2), 1)};
  if (c.spec.mode == CrossEntropyMode::Both) {
    // from e^(x - block maximum) to dloss p
    V max_row =
        e.at(e.buffer(2), e.add(e.mul(e.task(), c.padded()), e.i(c.maxima())));
    e.loop(e.i(0), e.i(c.panels()), 1, [&](V p) {
      Vs factor;
      for (int j = 0; j < 2; ++j) {
        V t = e.add(e.mul(p, c.panel), j * L);
        V shift = e.sub(e.vload(DType::F32, e.at(max_row, t)),
                        e.vload(DType::F32, rows.stat(Chunk::kLse, t)));
        factor.push_back(
            e.mul(exp2_fast(e, shift),
                  e.vload(DType::F32, rows.stat(Chunk::kScale, t))));
      }
      rows.store_all(p, n, [&](V v) {
        Vs x;
        for (int j = 0; j < 2; ++j) {
          V t = e.add(e.mul(p, c.panel), j * L);
          // rows are too far apart for the hardware's prefetcher
          if (j == 0) e.prefetch(rows.plain_at(v, e.add(t, 2 * c.panel)));
          x.push_back(
              e.mul(e.vload(DType::BF16, rows.plain_at(v, t)), factor[j]));
        }
        return x;
      });
    });
    rows.store_targets(e.buffer(1), first, n);
  }
  auto finish = [&](V x, V sums, V to, V mask) {
    if (!order.first) x = e.add(x, e.vload(DType::F32, sums, mask));
    if (order.last)
      e.vstore(DType::BF16, x, to, mask);
    else
      e.vstore(DType::F32, x, sums, mask);
  };
  V block = e.scratch();
  begin_pairs(e);
  auto columns = [&](V j, int64_t width) {
    // steps over tokens, so that the columns' pairs stay in L1
    auto product = [&](V t, V steps, bool accumulate) {
      V x = e.at(e.at(e.buffer(0), j), e.mul(t, l.dim / 2));
      pair_product(e,
                   {e.at(rows.plain, t, 2), l.plain_ld(), x, 4 * l.dim, block,
                    l.panel_bytes()},
                   e.i(c.block), steps, accumulate);
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
        finish(x, e.at(e.at(e.buffer(5), at), k),
               e.at(e.at(e.buffer(7), at, 2), k, 2), mask);
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
      return Vs{e.add(s[0], e.vload(DType::BF16, rows.plain_at(v, t)))};
    })[0];
    V row = e.add(first, v), total = e.hsum(sum);
    V kept = e.at(e.buffer(6), row);
    if (!order.first) total = e.add(total, e.load(DType::F32, kept));
    if (order.last)
      e.store(DType::BF16, total, e.at(e.buffer(8), row, 2));
    else
      e.store(DType::F32, total, kept);
  });
}

// A task of dX owns some panels and channels: many of these, since it reads the
// pairs of its panels for each block of channels.
constexpr int64_t kDxPanels = 8;
int64_t dx_channels(const Chunk& c) {
  return std::min<int64_t>(pair_padded(c.spec.dim), 512);
}
int64_t dx_tasks(const Chunk& c) {
  const int64_t channels = dx_channels(c);
  return (c.panels() + kDxPanels - 1) / kDxPanels *
         ((c.spec.dim + channels - 1) / channels);
}

// Buffers: W^T, pairs, dX.
void emit_dx(Emit& e, const Chunk& c) {
  const Layout l(c);
  const int L = e.lanes();
  const int64_t d = c.spec.dim;
  const int64_t most = dx_channels(c), splits = (d + most - 1) / most;
  V group = e.div(e.task(), e.i(splits));
  V from = e.mul(e.rem(e.task(), e.i(splits)), most);
  V channels = e.min(e.i(most), e.sub(e.i(l.dim), from));
  V p0 = e.mul(group, kDxPanels);
  V p1 = e.min(e.add(p0, kDxPanels), e.i(c.panels()));
  const int64_t size = most * c.panel;  // of a panel's sums
  auto sums_of = [&](V p) {
    return e.at(e.scratch(), e.mul(e.sub(p, p0), size));
  };
  zero_fill(e, e.scratch(), e.mul(e.sub(p1, p0), size));
  V weights = e.at(e.buffer(0), e.mul(from, l.weights_ld()), 1);
  begin_pairs(e);
  e.loop(e.i(0), e.i(l.vocab), kSteps, [&](V v) {
    V steps = e.min(e.i(kSteps), e.sub(e.i(l.vocab), v));
    e.loop(p0, p1, 1, [&](V p) {
      V pairs = e.at(e.at(e.buffer(1), e.mul(p, l.pairs()), 1),
                     e.mul(v, l.panel_bytes() / 2), 1);
      pair_product(e,
                   {e.at(weights, v, 2), l.weights_ld(), pairs, l.panel_bytes(),
                    sums_of(p), l.panel_bytes()},
                   channels, steps, true);
    });
  });
  end_pairs(e);
  auto unpack = [&](int64_t width) {
    e.loop(p0, p1, 1, [&](V p) {
      V t = e.mul(p, c.panel), valid = e.sub(e.i(c.count), t);
      V to = e.at(e.buffer(2), e.add(e.mul(t, d), from), 2);
      for (int j = 0; j < 2; ++j) {
        std::vector<int> row_of;
        for (int k = 0; k < L; ++k) row_of.push_back(j * L + k);
        unpack_columns(e, e.at(sums_of(p), j * L), l.panel_bytes(), width,
                       e.splat(e.f(1)), to, d, valid, row_of);
      }
    });
  };
  if (d % most == 0) return unpack(most);
  if (d < most) return unpack(d);
  e.if_(
      e.lt(from, e.i(d / most * most)), [&] { unpack(most); },
      [&] { unpack(d % most); });
}

}  // namespace

CrossEntropyPlan cross_entropy_pair_plan(const CrossEntropySpec& s,
                                         const Target& target) {
  const bool grads = s.mode != CrossEntropyMode::Loss;
  const int64_t chunk = s.chunk(), panel = panel_lanes(target);
  auto part = [&](int64_t t0) {
    Chunk c(s, std::min(chunk, s.tokens - t0), panel);
    // whole steps of the sums over tokens and over the vocabulary
    c.room = pair_padded(c.count);
    c.block = std::clamp<int64_t>(pair_padded((s.vocab + 7) / 8), 32, 128);
    return c;
  };
  const Chunk whole = part(0);
  const Layout l(whole);
  const bool several = s.tokens > chunk;
  CrossEntropyPlan plan;
  auto room = [&](B b, int64_t bytes) {
    plan.workspaces.push_back({b, bytes});
  };
  room(B::Xt, whole.panels() * l.columns());
  room(B::Stats, 4 * whole.stats_size());
  if (grads) {
    room(B::XPairs, 2 * l.tokens * l.dim);
    room(B::Wt, l.dim * l.weights_ld());
    room(B::Logits, l.vocab * l.plain_ld());
    room(B::Pairs, whole.panels() * l.pairs());
    if (several) room(B::Sums, 4 * s.vocab * s.dim);
    if (several && s.bias) room(B::BiasSums, 4 * s.vocab);
  }
  const B sums = several ? B::Sums : B::Stats;  // any if there is one chunk
  const B bias_sums = several && s.bias ? B::BiasSums : B::Stats;

  const double weights = 2.0 * double(s.vocab * s.dim);
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
  if (grads)
    add(whole, 0, "weights", {B::W, B::Wt}, whole.blocks(), 0, 0, 2 * weights,
        [c = whole](Emit& e) { emit_weights(e, c); });
  for (int64_t t0 = 0; t0 < s.tokens; t0 += chunk) {
    const Chunk c = part(t0);
    const Layout l(c);
    const double logits = 2.0 * double(c.count * s.vocab);
    const B x_pairs = grads ? B::XPairs : B::Xt;
    add(c, t0, "pack", {B::X, B::Xt, x_pairs}, c.panels(), 0, 0,
        6.0 * double(c.count * s.dim), [c](Emit& e) { emit_pack(e, c); });
    if (s.mode == CrossEntropyMode::Grad)
      add(c, t0, "rows", {B::Targets, B::Dloss, B::Lse, B::Stats}, 1, 0, 0,
          12.0 * double(c.count),
          [c](Emit& e) { emit_cross_entropy_rows(e, c); });
    const B plain = grads ? B::Logits : B::Stats;
    const B pairs = grads ? B::Pairs : B::Stats;
    add(c, t0, "logits",
        {B::W, B::Bias, B::Targets, B::Xt, B::Stats, plain, pairs}, c.blocks(),
        2 * c.block * l.dim + l.block_sums(), 1, weights + logits,
        [c](Emit& e) { emit_logits(e, c); });
    if (s.mode != CrossEntropyMode::Grad)
      add(c, t0, "lse", {B::Targets, B::Stats, B::Loss, B::Lse, B::Dloss},
          c.panels(), 0, 0, 8.0 * double(c.blocks() * c.count),
          [c](Emit& e) { emit_cross_entropy_lse(e, c); });
    if (!grads) continue;
    const Order order{t0 == 0, t0 + chunk >= s.tokens};
    const std::string name = fmt::format("dw{}{}", order.first ? " first" : "",
                                         order.last ? " last" : "");
    add(c, t0, name,
        {B::XPairs, B::Targets, B::Stats, B::Logits, B::Pairs, sums, bias_sums,
         B::Dw, B::Dbias},
        c.blocks(), l.block_sums(), 1, 3 * logits + 4 * weights,
        [c, order](Emit& e) { emit_dw(e, c, order); });
    add(c, t0, "dx", {B::Wt, B::Pairs, B::Dx}, dx_tasks(c),
        kDxPanels * dx_channels(c) * l.panel_bytes(), 1, logits + weights,
        [c](Emit& e) { emit_dx(e, c); });
  }
  return plan;
}

}  // namespace moec
