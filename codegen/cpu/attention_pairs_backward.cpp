#include "codegen/cpu/attention_pairs_backward.h"
#include "support/error.h"

namespace moec {

namespace {

struct Backward : PairBackward {
  KeyPart own = {};
  V k_rows = nullptr, v_rows = nullptr;

  // K^T of the block whose first key is `kb`.
  V transposed_at(V kb) {
    return e.at(part(at.kt), e.mul(kb, at.transposed.block / block_keys), 1);
  }
  struct Head {
    V q, dout, o, dq, lse, bh, key0, key1;
  };

  // The group of queries from `low` on.
  void pack_queries(const Head& h, V low) {
    V zero = e.i(0), count = e.i(s.q_len);
    V all = e.min(e.i(together), e.sub(e.i(size.query_rows), low));
    PairRows q{h.q, s.q.row, count, s.dim, planes};
    PairRows g{h.dout, s.o.row, count, s.value_dim, planes};
    Fn pack_q = pack_columns_function(e, s.q.row, s.dim, s.scale < 0, planes);
    Fn pack_g = pack_columns_function(e, s.o.row, s.value_dim, false, planes);
    // these read row by row, which the hardware fetches ahead best
    pack_interleaved(e, q, low, all, part(at.q), size.dim * 4);
    pack_interleaved(e, g, low, all, part(at.g), size.value_dim * 4);
    e.loop(zero, all, panel, [&](V q0) {
      for (int j = 0; j < 2; ++j) {
        V row = e.add(e.add(low, q0), j * L);
        V qt = e.at(part(at.qt), e.mul(q0, size.row_k), 1);
        V gt = e.at(part(at.gt), e.mul(q0, size.row_v), 1);
        e.call(pack_q, {h.q, count, row, e.at(qt, j * L)});
        e.call(pack_g, {h.dout, count, row, e.at(gt, j * L)});
      }
    });
  }

  // Lanes past the last query get values that make P zero.
  void statistics(const Head& h, V low) {
    const int64_t width = s.value_dim, whole = width / L * L;
    V end = e.min(e.i(s.q_len), e.add(low, together));
    auto stat = [&](int64_t which, V q) {
      return e.at(part(which), e.sub(q, low));
    };
    e.loop(low, end, 1, [&](V q) {
      V o = e.at(h.o, e.mul(q, s.o.row), element),
        g = e.at(h.dout, e.mul(q, s.o.row), element);
      auto step = [&](V c, V sum, V mask) {
        return e.fma(e.vload(dtype, e.at(o, c, element), mask),
                     e.vload(dtype, e.at(g, c, element), mask), sum);
      };
      V sum = e.loop(e.i(0), e.i(whole), L, {e.zero(Ty::F32, 0)},
                     [&](V c, Vs x) { return Vs{step(c, x[0], nullptr)}; })[0];
      if (whole < width)
        sum = step(e.i(whole), sum, e.mask(e.i(width - whole)));
      e.store(DType::F32, e.hsum(sum), stat(at.delta, q));
      V lse = e.mul(e.load(DType::F32, e.at(h.lse, q)), e.f(kLog2e));
      e.store(DType::F32, lse, stat(at.lse, q));
    });
    e.loop(end, e.min(e.i(size.query_rows), e.add(low, together)), 1, [&](V q) {
      e.store(DType::F32, e.f(-kLowest), stat(at.lse, q));
      e.store(DType::F32, e.f(0), stat(at.delta, q));
    });
  }

  // All pairs of a block of keys and a block of queries that see each other.
  // `start`: the group's first query.
  void block(const Head& h, V kb, V start, V qg, V from, V to) {
    V zero = e.i(0), left = e.sub(e.i(s.k_len), kb);
    auto keys = [&](int64_t start, int64_t row, V key) {
      return e.at(part(start), e.mul(e.add(kb, key), row), 1);
    };
    auto queries_at = [&](int64_t rows, int64_t row, V q) {
      return e.at(part(rows), e.mul(e.sub(q, start), row), 1);
    };
    e.loop(from, to, panel, [&](V q0) {
      V rel = e.sub(kb, e.add(q0, shift));
      PairRange r = pair_range(e, s, rel, left, block_keys);
      if (drop) {
        V row = e.mul(e.add(e.mul(h.bh, s.q_len), q0), s.k_len);
        for (int j = 0; j < 2; ++j)
          e.call(
              dropout_factors(e, s, panel),
              {e.at(part(at.keep), j * L),
               e.add(e.add(row, j * L * s.k_len), kb), r.end, h.key0, h.key1});
      }
      V column = e.sub(q0, qg);
      V pairs = part(at.pairs);
      V kt = transposed_at(kb), dqt = queries_at(at.dqt, size.dim * 4, q0);
      auto part_of = [&](bool masked, V from, V to) {
        e.call(gradients(masked),
               {e.at(k_rows, e.mul(kb, row_k), 1),
                e.at(v_rows, e.mul(kb, row_v), 1),
                queries_at(at.qt, size.row_k, q0),
                queries_at(at.gt, size.row_v, q0),
                e.at(part(at.p), column, 2 * planes),
                e.at(part(at.ds), column, 2 * planes), pairs,
                e.at(part(at.lse), e.sub(q0, start)), part(at.s), part(at.keep),
                kt, dqt, part(at.streams), rel, left, from, to});
      };
      V whole = e.max(r.low, r.whole);
      if (planes > 1) {
        // all keys in one go, for there to be a next strip
        part_of(true, r.first, r.end);
        return;
      }
      if (s.window) part_of(true, r.first, r.low);
      part_of(false, r.low, whole);
      part_of(true, whole, r.end);
      e.call(queries(),
             {e.at(kt, r.first, 2), e.at(pairs, e.mul(r.first, ld / 2), 1), dqt,
              e.sub(r.end, r.first)});
    });
    V end = e.min(ceil_to(e, left, kPairStep), e.i(block_keys));
    e.loop(zero, end, kPairStep, [&](V key) {
      // the panels that computed these keys
      V qs = from, qe = to, row = e.add(kb, key);
      if (s.causal) qs = e.max(qs, floor_to(e, e.add(row, -shift), panel));
      if (s.window)
        qe = e.min(qe, ceil_to(e, e.add(row, kPairStep + s.window - 1 - shift),
                               panel));
      V n = e.sub(qe, qs);
      e.if_(e.gt(n, zero), [&] {
        V skip = e.add(e.mul(key, block_row), e.mul(e.sub(qs, qg), 2 * planes));
        e.call(outer(size.value_dim),
               {e.at(part(at.p), skip, 1), queries_at(at.g, size.row_v, qs),
                keys(at.dv, size.value_dim * 4, key), n, part(at.streams)});
        e.call(outer(size.dim),
               {e.at(part(at.ds), skip, 1), queries_at(at.q, size.row_k, qs),
                keys(at.dk, size.dim * 4, key), n, part(at.streams)});
      });
    });
  }

  // Fetches what follows the group of queries from `start` on, of this head or
  // the next one.
  void fetch_queries(const Head& h, V start) {
    V next = e.add(start, together), ends = e.ge(next, e.i(s.q_len));
    auto ahead = [&](Stream i, V rows, const AttentionView& v) {
      V skip = e.select(ends, e.i(v.head), e.mul(next, v.row));
      start_fetch(e, record(part(at.streams), i), e.at(rows, skip));
    };
    ahead(kQ, h.q, s.q), ahead(kGrad, h.dout, s.o), ahead(kO, h.o, s.o);
    start_fetch(e, record(part(at.streams), kDq),
                e.at(h.dq, e.mul(start, dq_row)));
  }

  // dQ of the group of queries from `start` on, and what they add to dK and dV.
  void query_group(const Head& h, V start) {
    if (planes > 1) fetch_queries(h, start);
    pack_queries(h, start);
    statistics(h, start);
    zero_fill(e, part(at.dqt), e.i((at.q - at.dqt) / 4));
    V end = e.min(e.i(size.query_rows), e.add(start, together));
    V low = own.low, high = own.high;
    if (s.causal) high = e.min(high, e.add(end, shift));
    if (s.window) {
      V key = e.max(e.i(0), e.add(start, shift - s.window + 1));
      low = e.max(low, floor_to(e, key, block_keys));
    }
    e.loop(low, high, block_keys, [&](V kb) {
      V first = start, last = end;
      if (s.causal) first = e.max(first, e.add(kb, -shift));
      if (s.window)
        last = e.min(
            last,
            ceil_to(e, e.add(kb, block_keys + s.window - 1 - shift), panel));
      e.loop(floor_to(e, first, kPairQueries), last, kPairQueries, [&](V qg) {
        block(h, kb, start, qg, e.max(qg, floor_to(e, first, panel)),
              e.min(e.add(qg, kPairQueries), last));
      });
    });
    store_queries(h, start);
  }

  void store_queries(const Head& h, V start) {
    std::vector<int> row_of;
    for (int t = 0; t < L; ++t) row_of.push_back(pair_lane(t, 0));
    Fn unpack =
        unpack_columns_function(e, "unpack", s.dq.row, s.dim, row_of, planes);
    // the strip of scores is free now
    e.vstore(DType::F32, e.splat(e.f(s.scale)), part(at.s));
    V end = e.min(e.i(s.q_len), e.add(start, together));
    e.loop(start, end, panel, [&](V q0) {
      V src = e.at(part(at.dqt), e.mul(e.sub(q0, start), size.dim * 4), 1);
      if (key_parts(s).size() > 2) {
        V rows = e.at(h.dq, e.mul(q0, s.dim));
        for (int j = 0; j < 2; ++j)
          unpack_rows(
              e, e.at(src, j * L), panel, s.dim, e.splat(e.f(s.scale)),
              [&](int t) { return e.at(rows, pair_lane(t, j) * s.dim); },
              e.i(L));
        return;
      }
      V dst = e.at(h.dq, e.mul(q0, s.dq.row), element);
      V rows = e.min(e.sub(e.i(s.q_len), q0), e.i(panel));
      for (int j = 0; j < 2; ++j)
        e.call(unpack, {e.at(src, j * L), part(at.s),
                        e.at(dst, pair_lane(0, j) * s.dq.row, element),
                        e.add(rows, -pair_lane(0, j))});
    });
  }

  // f32 rows to the dtype
  void store_rows(int64_t from, int64_t width, V to, int64_t stride,
                  int64_t channels, double scale) {
    e.loop(own.low, own.high, 1, [&](V k) {
      V src = e.at(part(from), e.mul(k, width * 4), 1);
      V dst = e.at(to, e.mul(k, stride), element);
      auto step = [&](V c, V mask) {
        V x = e.mul(e.vload(DType::F32, e.at(src, c)), e.f(scale));
        e.vstore(dtype, x, e.at(dst, c, element), mask);
      };
      const int64_t whole = channels / L * L;
      e.loop(e.i(0), e.i(whole), L, [&](V c) { step(c, nullptr); });
      if (whole < channels) step(e.i(whole), e.mask(e.i(channels - whole)));
    });
  }

  void kernel() {
    begin_pairs(e);
    own = key_part(e, s, e.task());
    V owner = e.div(e.task(), e.i(int64_t(key_parts(s).size()) - 1));
    V b = e.div(owner, e.i(s.kv_heads)), kv = e.rem(owner, e.i(s.kv_heads));
    auto view = [&](int buffer, const AttentionView& v, V head) {
      return e.at(e.buffer(buffer),
                  e.add(e.mul(b, v.batch), e.mul(head, v.head)), element);
    };
    const int64_t group = s.heads / s.kv_heads;
    const int out = 6 + drop;
    V zero = e.i(0), count = e.i(s.k_len), count_q = e.i(s.q_len);
    V low = own.low, all = e.sub(ceil_to(e, own.high, kPairStep), low);
    auto own_part = [&](int64_t start, int64_t row) {
      return e.at(part(start), e.mul(low, row), 1);
    };
    PairRows k{view(1, s.k, kv), s.k.row, count, s.dim, planes};
    PairRows v{view(2, s.v, kv), s.v.row, count, s.value_dim, planes};
    k_rows = k_stands ? k.base : part(at.k);
    v_rows = v_stands ? v.base : part(at.v);
    if (!k_stands) pack_plain(e, k, low, all, own_part(at.k, row_k), row_k);
    if (!v_stands) pack_plain(e, v, low, all, own_part(at.v, row_v), row_v);
    e.loop(low, own.high, block_keys, [&](V kb) {
      V n = e.min(e.i(block_keys), e.sub(e.add(low, all), kb));
      pack_transposed(e, k, kb, n, transposed_at(kb), at.transposed.row);
    });
    zero_fill(e, own_part(at.dk, size.dim * 4), e.mul(all, size.dim));
    zero_fill(e, own_part(at.dv, size.value_dim * 4),
              e.mul(all, size.value_dim));
    V key0 = nullptr, key1 = nullptr;
    if (drop) {
      key0 = e.load(DType::U32, e.buffer(6));
      key1 = e.load(DType::U32, e.at(e.buffer(6), 1));
    }
    e.loop(zero, e.i(group), 1, [&](V g) {
      V h = e.add(e.mul(kv, group), g);
      V bh = e.add(e.mul(b, s.heads), h);
      Head head{view(0, s.q, h),
                view(5, s.o, h),
                view(3, s.o, h),
                view(out, s.dq, h),
                e.at(e.buffer(4), e.mul(bh, s.q_len)),
                bh,
                key0,
                key1};
      if (key_parts(s).size() > 2)
        head.dq = partial_rows(e, s, e.buffer(out + 3), own.number, bh);
      e.loop(zero, count_q, together, [&](V q) { query_group(head, q); });
    });
    store_rows(at.dk, size.dim, view(out + 1, s.dk, kv), s.dk.row, s.dim,
               s.scale);
    store_rows(at.dv, size.value_dim, view(out + 2, s.dv, kv), s.dv.row,
               s.value_dim, 1);
    end_pairs(e);
  }
};

}  // namespace

void emit_pairs_backward(KernelSpec& spec, const AttentionSpec& s,
                         const Target& target) {
  spec.emit = [s](Emit& e) { Backward{{e, s}}.kernel(); };
  spec.scratch_bytes = PairBackwardLayout(s, panel_lanes(target)).end;
}

}  // namespace moec
