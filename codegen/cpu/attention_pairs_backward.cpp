#include "codegen/cpu/attention_pairs.h"
#include "support/error.h"

namespace moec {

namespace {

constexpr int64_t kKeys = kKeyPanel, kQueries = 128;  // of a block
// A row of the P and dS blocks, in bytes: an odd number of cache lines.
constexpr int64_t kBlockBytes = 2 * kQueries + 64;

// Scratch, in bytes. Of the keys of a head: K and V unless they stand as they
// are, K^T, and f32 dK and dV. Of the queries of one head, in panels of 2 *
// lanes(): pairs of Q^T and dO^T and f32 dQ^T; in pairs of rows: Q and dO;
// log-sum-exp (base 2) and rowsum(dO O). Then two strips each of f32 S^T and
// dP^T, the block of P^T and dS^T in rows, of dS^T in pairs of keys, and
// dropout factors.
struct Layout {
  int64_t k, v, kt, dk, dv, qt, gt, dqt, q, g, lse, delta;
  int64_t s, dp, other, p, ds, pairs, keep, end;
  TransposedKeys transposed;
  Layout(const AttentionSpec& spec, int64_t panel)
      : transposed(pair_padded(spec.k_len), PairSizes(spec).dim) {
    PairSizes n(spec);
    const int64_t keys = pair_padded(spec.k_len), rows = n.query_rows;
    int64_t at = 0;
    auto take = [&](int64_t bytes) {
      int64_t here = at;
      at += (bytes + 63) / 64 * 64;
      return here;
    };
    k = take(rows_stand(spec, spec.k, spec.dim) ? 0 : keys * n.row_k);
    v = take(rows_stand(spec, spec.v, spec.value_dim) ? 0 : keys * n.row_v);
    kt = take(transposed.bytes);
    dk = take(keys * n.dim * 4), dv = take(keys * n.value_dim * 4);
    qt = take(rows * n.row_k), gt = take(rows * n.row_v);
    dqt = take(rows * n.dim * 4);
    q = take(rows * n.row_k), g = take(rows * n.row_v);
    lse = take(rows * 4), delta = take(rows * 4);
    s = take(kPairStep * panel * 4), dp = take(kPairStep * panel * 4);
    other = take(2 * kPairStep * panel * 4);  // the same again
    p = take(kKeys * kBlockBytes), ds = take(kKeys * kBlockBytes);
    pairs = take(kKeys * panel * 2);
    keep = take(spec.dropout > 0 ? kKeys * panel * 4 : 0);
    end = at;
  }
};

struct Backward {
  Emit& e;
  const AttentionSpec& s;
  const int L = e.lanes(), panel = 2 * L, ld = panel * 4;
  const PairSizes size{s};
  const Layout at{s, panel};
  const bool drop = s.dropout > 0;
  const int64_t shift = s.k_len - s.q_len;
  KeyPart own = {};
  // K and V as the products read them, and their rows in bytes
  const bool k_stands = rows_stand(s, s.k, s.dim);
  const bool v_stands = rows_stand(s, s.v, s.value_dim);
  const int64_t row_k = k_stands ? 2 * s.k.row : size.row_k;
  const int64_t row_v = v_stands ? 2 * s.v.row : size.row_v;
  V k_rows = nullptr, v_rows = nullptr;

  // K^T of the block whose first key is `kb`.
  V transposed_at(V kb) {
    return e.at(part(at.kt), e.mul(kb, at.transposed.block / kKeys), 1);
  }
  V part(int64_t bytes) { return e.at(e.scratch(), bytes, 1); }

  // gradients(K, V, Qt, dOt, P, dS, pairs, stats, tiles, keep, rel, left, from,
  // to): P = exp2(c K Q^T - lse) and dS = P (V dO^T - delta)
  Fn gradients(bool masked) {
    std::vector<Ty> params(10, Ty::Ptr);
    params.insert(params.end(), 4, Ty::I64);
    return e.define(masked ? "gm" : "g", params, [&, masked](const Vs& a) {
      V factor = e.splat(e.f(pair_factor(s)));
      Vs lse, delta;
      for (int j = 0; j < 2; ++j) {
        lse.push_back(e.neg(e.vload(DType::F32, e.at(a[7], j * L))));
        V p = e.at(e.at(a[7], at.delta - at.lse, 1), j * L);
        delta.push_back(e.vload(DType::F32, p));
      }
      V n = e.i(kPairStep);
      auto multiply = [&](V k, V to) {
        pair_product(e,
                     {e.at(a[0], e.mul(k, row_k), 1), row_k, a[2], ld, to, ld},
                     n, e.i(size.dim), false);
        pair_product(e,
                     {e.at(a[1], e.mul(k, row_v), 1), row_v, a[3], ld,
                      e.at(to, at.dp - at.s, 1), ld},
                     n, e.i(size.value_dim), false);
      };
      // The next strip's products come before what is made of this one's, which
      // by then are stored.
      e.if_(e.lt(a[12], a[13]), [&] { multiply(a[12], a[8]); });
      Vs tiles = {a[8], e.at(a[8], at.other - at.s, 1)};
      e.loop(a[12], a[13], kPairStep, tiles, [&](V k, Vs tiles) {
        V next = e.add(k, kPairStep);
        e.if_(e.lt(next, a[13]), [&] { multiply(next, tiles[1]); });
        V scores = tiles[0], products = e.at(scores, at.dp - at.s, 1);
        V row_p = e.at(a[4], e.mul(k, kBlockBytes), 1);
        V row_ds = e.at(a[5], e.mul(k, kBlockBytes), 1);
        V row_pairs = e.at(a[6], e.mul(k, ld / 2), 1);
        V row_keep = drop ? e.at(a[9], e.mul(k, ld), 1) : nullptr;
        e.loop(e.i(0), n, 2, [&](V i) {
          V from = e.mul(i, ld), to = e.mul(i, kBlockBytes);
          Vs rows;
          for (int r = 0; r < 2; ++r) {
            V p[2], ds[2];
            for (int j = 0; j < 2; ++j) {
              const int skip = r * ld + j * L * 4;
              auto load = [&](V base) {
                return e.vload(DType::F32, e.at(e.at(base, from, 1), skip, 1));
              };
              V x = exp2_coarse(e, e.fma(load(scores), factor, lse[j]));
              if (masked) {
                V key = e.add(e.add(k, i), r);
                x = e.select(pair_seen(e, s, key, a[10], a[11], j), x,
                             e.zero(Ty::F32, 0));
              }
              V f = drop ? load(row_keep) : nullptr, g = load(products);
              p[j] = drop ? e.mul(x, f) : x;
              if (drop) g = e.mul(g, f);
              ds[j] = e.mul(x, e.sub(g, delta[j]));
            }
            e.store_raw(e.to_bf16(p[0], p[1]),
                        e.at(e.at(row_p, to, 1), r * kBlockBytes, 1), 2);
            rows.push_back(e.to_bf16(ds[0], ds[1]));
            e.store_raw(rows[r], e.at(e.at(row_ds, to, 1), r * kBlockBytes, 1),
                        2);
          }
          rows = unpack_pairs(e, rows[0], rows[1]);
          V pairs = e.at(row_pairs, e.mul(i, ld / 2), 1);
          for (int j = 0; j < 2; ++j)
            e.store_raw(rows[j], e.at(pairs, j * L), 4);
        });
        return Vs{tiles[1], tiles[0]};
      });
    });
  }

  // queries(Kt, pairs, dQt, n): dQt += K^T dS over n keys
  Fn queries() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define("q", params, [&](const Vs& a) {
      pair_product(e, {a[0], at.transposed.row, a[1], ld, a[2], ld},
                   e.i(size.dim), a[3], true);
    });
  }

  // outer(P, X, C, n): C[key][channel] += P[key][query] X[query][channel] for
  // kPairStep keys and n queries; here channels are the lanes
  Fn outer(int64_t channels) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    std::string name = "o" + std::to_string(channels);
    return e.define(name, params, [&, channels](const Vs& a) {
      e.loop(e.i(0), e.i(channels), panel, [&](V d) {
        pair_product(e,
                     {a[0], kBlockBytes, e.at(a[1], d), channels * 4,
                      e.at(a[2], d), channels * 4},
                     e.i(kPairStep), a[3], true);
      });
    });
  }

  struct Head {
    V q, dout, o, dq, lse, bh, key0, key1;
  };

  void pack_queries(const Head& h) {
    V zero = e.i(0), all = e.i(size.query_rows), count = e.i(s.q_len);
    PairRows q{h.q, s.q.row, count, s.dim};
    PairRows g{h.dout, s.o.row, count, s.value_dim};
    Fn pack_q =
        pack_columns_function(e, "packq", s.q.row, s.dim, s.scale < 0, 1);
    Fn pack_g =
        pack_columns_function(e, "packg", s.o.row, s.value_dim, false, 1);
    e.loop(zero, all, panel, [&](V q0) {
      for (int j = 0; j < 2; ++j) {
        V row = e.add(q0, j * L);
        V qt = e.at(part(at.qt), e.mul(q0, size.row_k), 1);
        V gt = e.at(part(at.gt), e.mul(q0, size.row_v), 1);
        e.call(pack_q, {h.q, count, row, e.at(qt, j * L)});
        e.call(pack_g, {h.dout, count, row, e.at(gt, j * L)});
      }
    });
    pack_interleaved(e, q, zero, all, part(at.q), 2 * size.row_k);
    pack_interleaved(e, g, zero, all, part(at.g), 2 * size.row_v);
  }

  // Lanes past the last query get values that make P zero.
  void statistics(const Head& h) {
    const int64_t width = s.value_dim, whole = width / L * L;
    e.loop(e.i(0), e.i(s.q_len), 1, [&](V q) {
      V o = e.at(h.o, e.mul(q, s.o.row), 2),
        g = e.at(h.dout, e.mul(q, s.o.row), 2);
      auto step = [&](V c, V sum, V mask) {
        return e.fma(e.vload(DType::BF16, e.at(o, c, 2), mask),
                     e.vload(DType::BF16, e.at(g, c, 2), mask), sum);
      };
      V sum = e.loop(e.i(0), e.i(whole), L, {e.zero(Ty::F32, 0)},
                     [&](V c, Vs x) { return Vs{step(c, x[0], nullptr)}; })[0];
      if (whole < width)
        sum = step(e.i(whole), sum, e.mask(e.i(width - whole)));
      e.store(DType::F32, e.hsum(sum), e.at(part(at.delta), q));
      V lse = e.mul(e.load(DType::F32, e.at(h.lse, q)), e.f(kLog2e));
      e.store(DType::F32, lse, e.at(part(at.lse), q));
    });
    for (int64_t q = s.q_len; q < size.query_rows; ++q) {
      e.store(DType::F32, e.f(-kLowest), e.at(part(at.lse), q));
      e.store(DType::F32, e.f(0), e.at(part(at.delta), q));
    }
  }

  // All pairs of a block of keys and a block of queries that see each other.
  void block(const Head& h, V kb, V qg, V from, V to) {
    V zero = e.i(0), left = e.sub(e.i(s.k_len), kb);
    auto keys = [&](int64_t start, int64_t row, V key) {
      return e.at(part(start), e.mul(e.add(kb, key), row), 1);
    };
    auto queries_at = [&](int64_t start, int64_t row, V q) {
      return e.at(part(start), e.mul(q, row), 1);
    };
    e.loop(from, to, panel, [&](V q0) {
      V rel = e.sub(kb, e.add(q0, shift));
      PairRange r = pair_range(e, s, rel, left, kKeys);
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
      auto part_of = [&](bool masked, V from, V to) {
        e.call(gradients(masked),
               {e.at(k_rows, e.mul(kb, row_k), 1),
                e.at(v_rows, e.mul(kb, row_v), 1),
                queries_at(at.qt, size.row_k, q0),
                queries_at(at.gt, size.row_v, q0), e.at(part(at.p), column, 2),
                e.at(part(at.ds), column, 2), pairs, e.at(part(at.lse), q0),
                part(at.s), part(at.keep), rel, left, from, to});
      };
      V whole = e.max(r.low, r.whole);
      if (s.window) part_of(true, r.first, r.low);
      part_of(false, r.low, whole);
      part_of(true, whole, r.end);
      e.call(queries(),
             {e.at(transposed_at(kb), r.first, 2),
              e.at(pairs, e.mul(r.first, ld / 2), 1),
              queries_at(at.dqt, size.dim * 4, q0), e.sub(r.end, r.first)});
    });
    V end = e.min(ceil_to(e, left, kPairStep), e.i(kKeys));
    e.loop(zero, end, kPairStep, [&](V key) {
      // the panels that computed these keys
      V qs = from, qe = to, row = e.add(kb, key);
      if (s.causal) qs = e.max(qs, floor_to(e, e.add(row, -shift), panel));
      if (s.window)
        qe = e.min(qe, ceil_to(e, e.add(row, kPairStep + s.window - 1 - shift),
                               panel));
      V n = e.sub(qe, qs);
      e.if_(e.gt(n, zero), [&] {
        V skip = e.add(e.mul(key, kBlockBytes), e.mul(e.sub(qs, qg), 2));
        e.call(outer(size.value_dim),
               {e.at(part(at.p), skip, 1), queries_at(at.g, size.row_v, qs),
                keys(at.dv, size.value_dim * 4, key), n});
        e.call(outer(size.dim),
               {e.at(part(at.ds), skip, 1), queries_at(at.q, size.row_k, qs),
                keys(at.dk, size.dim * 4, key), n});
      });
    });
  }

  void blocks(const Head& h) {
    V zero = e.i(0);
    e.loop(own.low, own.high, kKeys, [&](V kb) {
      V first = s.causal ? e.max(zero, e.add(kb, -shift)) : zero;
      V last = e.i(s.q_len);
      if (s.window) last = e.min(last, e.add(kb, kKeys + s.window - 1 - shift));
      last = ceil_to(e, last, panel);
      e.loop(floor_to(e, first, kQueries), last, kQueries, [&](V qg) {
        block(h, kb, qg, e.max(qg, floor_to(e, first, panel)),
              e.min(e.add(qg, kQueries), last));
      });
    });
  }

  // f32 rows to bf16
  void store_rows(int64_t from, int64_t width, V to, int64_t stride,
                  int64_t channels, double scale) {
    e.loop(own.low, own.high, 1, [&](V k) {
      V src = e.at(part(from), e.mul(k, width * 4), 1);
      V dst = e.at(to, e.mul(k, stride), 2);
      auto step = [&](V c, V mask) {
        V x = e.mul(e.vload(DType::F32, e.at(src, c)), e.f(scale));
        e.vstore(DType::BF16, x, e.at(dst, c, 2), mask);
      };
      const int64_t whole = channels / L * L;
      e.loop(e.i(0), e.i(whole), L, [&](V c) { step(c, nullptr); });
      if (whole < channels) step(e.i(whole), e.mask(e.i(channels - whole)));
    });
  }

  void kernel() {
    begin_pairs(e);
    const bool alone = key_parts(s).size() == 2;
    own = key_part(e, s, e.task());
    V owner = e.div(e.task(), e.i(int64_t(key_parts(s).size()) - 1));
    V b = e.div(owner, e.i(s.kv_heads)), kv = e.rem(owner, e.i(s.kv_heads));
    auto view = [&](int buffer, const AttentionView& v, V head) {
      return e.at(e.buffer(buffer),
                  e.add(e.mul(b, v.batch), e.mul(head, v.head)), 2);
    };
    const int64_t group = s.heads / s.kv_heads;
    const int out = 6 + drop;
    V zero = e.i(0), count = e.i(s.k_len);
    V low = own.low, all = e.sub(ceil_to(e, own.high, kPairStep), low);
    auto own_part = [&](int64_t start, int64_t row) {
      return e.at(part(start), e.mul(low, row), 1);
    };
    PairRows k{view(1, s.k, kv), s.k.row, count, s.dim};
    PairRows v{view(2, s.v, kv), s.v.row, count, s.value_dim};
    k_rows = k_stands ? k.base : part(at.k);
    v_rows = v_stands ? v.base : part(at.v);
    if (!k_stands) pack_plain(e, k, low, all, own_part(at.k, row_k), row_k);
    if (!v_stands) pack_plain(e, v, low, all, own_part(at.v, row_v), row_v);
    e.loop(low, own.high, kKeys, [&](V kb) {
      V n = e.min(e.i(kKeys), e.sub(e.add(low, all), kb));
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
      pack_queries(head);
      statistics(head);
      zero_fill(e, part(at.dqt), e.i((at.q - at.dqt) / 4));
      blocks(head);
      std::vector<int> row_of;
      for (int t = 0; t < L; ++t) row_of.push_back(pair_lane(t, 0));
      Fn unpack =
          unpack_columns_function(e, "unpack", s.dq.row, s.dim, row_of, 1);
      // the strip of scores is free now
      e.vstore(DType::F32, e.splat(e.f(s.scale)), part(at.s));
      e.loop(zero, e.i(s.q_len), panel, [&](V q0) {
        V src = e.at(part(at.dqt), e.mul(q0, size.dim * 4), 1);
        if (!alone) {
          V rows = partial_rows(e, s, e.buffer(out + 3), own.number, bh);
          rows = e.at(rows, e.mul(q0, s.dim));
          for (int j = 0; j < 2; ++j)
            unpack_rows(
                e, e.at(src, j * L), panel, s.dim, e.splat(e.f(s.scale)),
                [&](int t) { return e.at(rows, pair_lane(t, j) * s.dim); },
                e.i(L));
          return;
        }
        V dst = e.at(head.dq, e.mul(q0, s.dq.row), 2);
        V rows = e.min(e.sub(e.i(s.q_len), q0), e.i(panel));
        for (int j = 0; j < 2; ++j)
          e.call(unpack, {e.at(src, j * L), part(at.s),
                          e.at(dst, pair_lane(0, j) * s.dq.row, 2),
                          e.add(rows, -pair_lane(0, j))});
      });
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
  spec.emit = [s](Emit& e) { Backward{e, s}.kernel(); };
  spec.scratch_bytes = Layout(s, panel_lanes(target)).end;
}

}  // namespace moec
