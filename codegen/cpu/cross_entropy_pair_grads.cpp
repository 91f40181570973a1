// The gradients of the loss as products over pairs.
#include "codegen/cpu/cross_entropy_pair.h"

namespace moec {

namespace {

using Chunk = CrossEntropyChunk;

// dlogits of a block from e^(x - block maximum), a step of tokens from `t` on.
void emit_scale(const LossRows& rows, V targets, V t) {
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

}  // namespace

void emit_pair_dw(Emit& e, const Chunk& c, LossOrder order) {
  const LossRows rows(e, c, e.buffer(2), e.buffer(3));
  const LossLayout& l = rows.l;
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
    e.loop(e.i(0), e.i(l.tokens), kLossSteps, [&](V t) {
      V steps = e.min(e.i(kLossSteps), e.sub(e.i(l.tokens), t));
      V x = l.panel(e, e.buffer(0), l.tokens, j, t);
      pair_product(e, product_of(t, x), e.i(c.block), steps, e.gt(t, e.i(0)));
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

void emit_pair_dx(Emit& e, const Chunk& c) {
  const LossLayout l(c);
  const int L = e.lanes();
  const int64_t d = c.spec.dim;
  const LossDxTasks tasks(c);
  V from = e.mul(e.rem(e.task(), e.i(tasks.splits)), tasks.channels);
  V channels = e.min(e.i(tasks.channels), e.sub(e.i(l.dim), from));
  V t0 = e.mul(e.div(e.task(), e.i(tasks.splits)), kLossDxTokens);
  V t1 = e.min(e.add(t0, kLossDxTokens), e.i(l.tokens));
  V sums = e.scratch(), pairs = e.at(sums, tasks.sums(), 1);
  V planes = e.at(pairs, l.slab(kLossSteps), 1);
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
  e.loop(e.i(0), e.i(l.vocab), kLossSteps, [&](V v) {
    V steps = e.min(e.i(kLossSteps), e.sub(e.i(l.vocab), v));
    V weights = planes;
    if (l.split())
      with_width([&](int64_t width) {
        PairRows rows = l.rows(source, d, e.i(c.spec.vocab), width);
        rows.ahead = kPairStep * d;
        pack_transposed(e, rows, v, steps, planes, l.weights_ld());
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
        pair_product(e, m, channels, steps, e.gt(v, e.i(0)));
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

}  // namespace moec
