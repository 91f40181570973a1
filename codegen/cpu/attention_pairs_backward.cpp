#include <algorithm>

#include "codegen/cpu/attention_pairs.h"
#include "codegen/cpu/fetch_rows.h"
#include "support/error.h"

namespace moec {

namespace {

constexpr int64_t kQueries = 128;  // of a block

// What the operands' planes decide: how many keys a block has, and a row of the
// P and dS blocks in bytes, an odd number of cache lines.
struct BlockSizes {
  int64_t keys, row;
  explicit BlockSizes(int planes)
      : keys(planes > 1 ? 128 : kKeyPanel), row(2 * planes * kQueries + 64) {}
};

// Queries that are packed at a time: blocks of them that stay in L2, while all
// keys pass. In planes one, so that what is fetched ahead has room there, too.
int64_t group_queries(const AttentionSpec& s) {
  constexpr int64_t kRoom = 768 << 10;
  PairSizes n(s);
  if (n.planes > 1) return kQueries;
  const int64_t bytes = 2 * (n.row_k + n.row_v) + 4 * n.dim;
  const int64_t fit = kRoom / bytes / kQueries * kQueries;
  return std::clamp(fit, kQueries,
                    (s.q_len + kQueries - 1) / kQueries * kQueries);
}

// Scratch, in bytes. Of the keys of a head: K and V unless they stand as they
// are, K^T, and f32 dK and dV. Of a group of queries, in panels of 2 * lanes():
// pairs of Q^T and dO^T and f32 dQ^T; in pairs of rows: Q and dO; log-sum-exp
// (base 2) and rowsum(dO O). Then two strips each of f32 S^T and dP^T, the
// block of P^T and dS^T in rows, of dS^T in pairs of keys, and dropout factors.
struct Layout {
  int64_t k, v, kt, dk, dv, qt, gt, dqt, q, g, lse, delta;
  int64_t s, dp, other, p, ds, pairs, streams, keep, end;
  TransposedKeys transposed;
  Layout(const AttentionSpec& spec, int64_t panel)
      : transposed(pair_padded(spec.k_len), PairSizes(spec).dim,
                   BlockSizes(PairSizes(spec).planes).keys,
                   PairSizes(spec).planes) {
    PairSizes n(spec);
    const BlockSizes block(n.planes);
    const int64_t keys = pair_padded(spec.k_len), rows = group_queries(spec);
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
    p = take(block.keys * block.row), ds = take(block.keys * block.row);
    pairs = take(block.keys * panel * 2 * n.planes);
    streams = take(4 * kFetchBytes);
    keep = take(spec.dropout > 0 ? block.keys * panel * 4 : 0);
    end = at;
  }
};

struct Backward {
  Emit& e;
  const AttentionSpec& s;
  const int L = e.lanes(), panel = 2 * L, ld = panel * 4;
  const PairSizes size{s};
  const int planes = size.planes;
  const int64_t block_keys = BlockSizes(planes).keys,
                block_row = BlockSizes(planes).row;
  const int64_t element = s.bf16 ? 2 : 4;
  const DType dtype = s.bf16 ? DType::BF16 : DType::F32;
  const int64_t together = group_queries(s);
  const int64_t dq_row = key_parts(s).size() > 2 ? s.dim : s.dq.row;
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
    return e.at(part(at.kt), e.mul(kb, at.transposed.block / block_keys), 1);
  }
  V part(int64_t bytes) { return e.at(e.scratch(), bytes, 1); }
  // What is read soon, or written: of the next group of queries Q, dO and O,
  // and this one's dQ.
  enum Stream { kQ, kGrad, kO, kDq, kStreams };
  FetchedRows rows_of(int i) const {
    if (i == kQ) return {s.q.row, s.dim, together};
    if (i == kDq) return {dq_row, s.dim, together, 1, 0, 2, true};
    return {s.o.row, s.value_dim, together};
  }
  V record(V streams, int i) { return e.at(streams, i * kFetchBytes, 1); }
  std::function<void(V, int)> fetch_from(V streams) {
    return [this, streams](V, int) {
      for (int i = 0; i < kStreams; ++i)
        fetch_some(e, record(streams, i), rows_of(i));
    };
  }
  PairProduct product(V a, int64_t lda, V b, int64_t ldb, V c, int64_t ldc) {
    PairProduct m{a, lda, b, ldb, c, ldc};
    m.planes = planes;
    m.a_step = m.a_plane * planes;
    return m;
  }
  // 2 * lanes() weights side by side, in planes.
  Vs plane_rows(V first, V second) {
    if (planes == 1) return {e.to_bf16(first, second)};
    Vs a = split_f32(e, first), b = split_f32(e, second), rows;
    for (int i = 0; i < planes; ++i) rows.push_back(join_row(e, a[i], b[i]));
    return rows;
  }

  // What a strip of keys needs to become P and dS.
  struct Strip {
    V scores;  // and dP after them
    V p, ds, pairs, keep;
    V key;  // its first, of the block
    V rel, left;
    V lse[2] = {}, delta[2] = {};
    bool masked = false;
  };
  // P = exp2(c S - lse) and dS = P (dP - delta) of the keys i and i + 1.
  void weigh(const Strip& t, V i) {
    V factor = e.splat(e.f(pair_factor(s)));
    V from = e.mul(i, ld), to = e.mul(i, block_row);
    Vs rows[2];
    for (int r = 0; r < 2; ++r) {
      V p[2], ds[2];
      for (int j = 0; j < 2; ++j) {
        const int64_t skip = r * ld + j * L * 4;
        auto load = [&](V base) {
          return e.vload(DType::F32, e.at(e.at(base, from, 1), skip, 1));
        };
        V y = e.fma(load(t.scores), factor, t.lse[j]);
        V x = s.bf16 ? exp2_coarse(e, y) : exp2_fast(e, y);
        if (t.masked) {
          V key = e.add(e.add(t.key, i), r);
          x = e.select(pair_seen(e, s, key, t.rel, t.left, j), x,
                       e.zero(Ty::F32, 0));
        }
        V f = drop ? load(t.keep) : nullptr;
        V g = load(e.at(t.scores, at.dp - at.s, 1));
        p[j] = drop ? e.mul(x, f) : x;
        if (drop) g = e.mul(g, f);
        ds[j] = e.mul(x, e.sub(g, t.delta[j]));
      }
      auto store = [&](const Vs& x, V row) {
        for (int i = 0; i < planes; ++i)
          e.store_raw(
              x[i],
              e.at(e.at(row, to, 1), r * block_row + i * 2 * kPairStep, 1), 2);
      };
      store(plane_rows(p[0], p[1]), t.p);
      rows[r] = plane_rows(ds[0], ds[1]);
      store(rows[r], t.ds);
    }
    V pairs = e.at(t.pairs, e.mul(i, ld / 2), 1);
    for (int k = 0; k < planes; ++k) {
      Vs two = unpack_pairs(e, rows[0][k], rows[1][k]);
      for (int j = 0; j < 2; ++j)
        e.store_raw(two[j], e.at(e.at(pairs, k * kPairStep / 2 * ld, 1), j * L),
                    4);
    }
  }

  // Arguments of the function below, in this order.
  enum Arg {
    kKeysAt,
    kValuesAt,
    kQueriesAt,
    kGradAt,
    kWeights,
    kGradients,
    kPairsAt,
    kStats,
    kTiles,
    kKeep,
    kKeysT,
    kQueryGrad,
    kStreamsAt,
    kRel,
    kLeft,
    kFrom,
    kTo,
    kArgs
  };
  // gradients(...): P and dS of the keys from .. to and of a panel of queries,
  // and from them dQt += K^T dS. The next strip's products come before what is
  // made of this one's, which by then are stored; in planes, that goes on
  // beside them, and the last strip's beside dQt of the others.
  Fn gradients(bool masked) {
    std::vector<Ty> params(kArgs, Ty::Ptr);
    std::fill(params.begin() + kRel, params.end(), Ty::I64);
    return e.define(masked ? "gm" : "g", params, [&, masked](const Vs& a) {
      Strip strip;
      for (int j = 0; j < 2; ++j) {
        V lse = e.at(a[kStats], j * L);
        strip.lse[j] = e.neg(e.vload(DType::F32, lse));
        strip.delta[j] = e.vload(DType::F32, e.at(lse, at.delta - at.lse, 1));
      }
      strip.rel = a[kRel], strip.left = a[kLeft], strip.masked = masked;
      auto strip_at = [&](V k, V tile) {
        Strip t = strip;
        t.scores = tile, t.key = k;
        t.p = e.at(a[kWeights], e.mul(k, block_row), 1);
        t.ds = e.at(a[kGradients], e.mul(k, block_row), 1);
        t.pairs = e.at(a[kPairsAt], e.mul(k, ld / 2 * planes), 1);
        t.keep = drop ? e.at(a[kKeep], e.mul(k, ld), 1) : nullptr;
        return t;
      };
      auto finish = [&](const Strip& t, V from) {
        e.loop(from, e.i(kPairStep), 2, [&](V i) { weigh(t, i); });
      };
      // Both products of a strip, each beside half of what is made of the one
      // before.
      auto multiply = [&](V k, V to, const Strip* before) {
        for (int half = 0; half < 2; ++half) {
          const int64_t row = half ? row_v : row_k;
          const int64_t width = half ? size.value_dim : size.dim;
          PairProduct m = product(e.at(a[half], e.mul(k, row), 1), row,
                                  a[kQueriesAt + half], ld,
                                  half ? e.at(to, at.dp - at.s, 1) : to, ld);
          // steps of the sum that do a share each
          const int parts = beside_parts(planes);
          const int shares = width >= 2 * kPairStep ? 2 : 1;
          const int n = int(kPairStep / 4) / shares / parts;  // of two keys
          auto some = [&](V x, int part) {
            auto body = [&] {
              V first = e.mul(e.lshr(x, e.i(5)), 2 * n * parts);
              for (int i = 0; i < n; ++i)
                weigh(*before,
                      e.add(first, half * kPairStep / 2 + 2 * (part * n + i)));
            };
            if (width == shares * kPairStep) return body();
            e.if_(e.lt(x, e.i(shares * kPairStep)), body);
          };
          if (before) m.beside = some;
          pair_product(e, m, e.i(kPairStep), e.i(width), false);
        }
      };
      V low = a[kFrom], high = a[kTo], last = e.add(high, -kPairStep);
      auto add_queries = [&](V from, V n, const Strip* beside) {
        V kt = e.at(a[kKeysT], from, 2 * planes);
        V pairs = e.at(a[kPairsAt], e.mul(from, ld / 2 * planes), 1);
        const int parts = beside_parts(planes);
        e.loop(e.i(0), e.i(size.dim), kPairStep, [&](V d) {
          PairProduct m = product(e.at(kt, e.mul(d, at.transposed.row), 1),
                                  at.transposed.row, pairs, ld,
                                  e.at(a[kQueryGrad], e.mul(d, ld), 1), ld);
          V before = e.mul(d, e.lshr(n, e.i(5)));
          auto some = [&](V x, int part) {
            V i = e.mul(e.lshr(e.add(before, x), e.i(5)), 2 * parts);
            i = e.add(i, 2 * part);
            e.if_(e.lt(i, e.i(kPairStep)), [&] { weigh(*beside, i); });
          };
          if (beside)
            m.beside = some;
          else if (planes > 1)
            m.beside = fetch_from(a[kStreamsAt]);
          pair_product(e, m, e.i(kPairStep), n, true);
        });
        if (!beside) return;
        V done = e.mul(e.lshr(n, e.i(5)), 2 * parts * size.dim / kPairStep);
        finish(*beside, e.min(done, e.i(kPairStep)));
      };
      e.if_(e.lt(low, high), [&] {
        Vs tiles = {a[kTiles], e.at(a[kTiles], at.other - at.s, 1)};
        multiply(low, tiles[0], nullptr);
        tiles = e.loop(low, last, kPairStep, tiles, [&](V k, Vs tiles) {
          Strip t = strip_at(k, tiles[0]);
          const bool beside = planes > 1;
          multiply(e.add(k, kPairStep), tiles[1], beside ? &t : nullptr);
          if (!beside) finish(t, e.i(0));
          return Vs{tiles[1], tiles[0]};
        });
        Strip t = strip_at(last, tiles[0]);
        if (planes > 1) {
          add_queries(low, e.sub(last, low), &t);
          add_queries(last, e.i(kPairStep), nullptr);
        } else {
          finish(t, e.i(0));
        }
      });
    });
  }

  // queries(Kt, pairs, dQt, n): dQt += K^T dS over n keys
  Fn queries() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define("q", params, [&](const Vs& a) {
      pair_product(e, product(a[0], at.transposed.row, a[1], ld, a[2], ld),
                   e.i(size.dim), a[3], true);
    });
  }

  // outer(P, X, C, n, streams): C[key][channel] += P[key][query]
  // X[query][channel] for kPairStep keys and n queries; here channels are the
  // lanes
  Fn outer(int64_t channels) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
    std::string name = "o" + std::to_string(channels);
    return e.define(name, params, [&, channels](const Vs& a) {
      e.loop(e.i(0), e.i(channels), panel, [&](V d) {
        PairProduct m = product(a[0], block_row, e.at(a[1], d), channels * 4,
                                e.at(a[2], d), channels * 4);
        if (planes > 1) m.beside = fetch_from(a[4]);
        pair_product(e, m, e.i(kPairStep), a[3], true);
      });
    });
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
    Fn pack_q =
        pack_columns_function(e, "packq", s.q.row, s.dim, s.scale < 0, planes);
    Fn pack_g =
        pack_columns_function(e, "packg", s.o.row, s.value_dim, false, planes);
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
        V masks = e.lt(whole, r.end);
        if (s.window) masks = e.or_(masks, e.lt(r.first, r.low));
        e.if_(
            masks, [&] { part_of(true, r.first, r.end); },
            [&] { part_of(false, r.first, r.end); });
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
      e.loop(floor_to(e, first, kQueries), last, kQueries, [&](V qg) {
        block(h, kb, start, qg, e.max(qg, floor_to(e, first, panel)),
              e.min(e.add(qg, kQueries), last));
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
  spec.emit = [s](Emit& e) { Backward{e, s}.kernel(); };
  spec.scratch_bytes = Layout(s, panel_lanes(target)).end;
}

}  // namespace moec
