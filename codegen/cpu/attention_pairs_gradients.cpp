#include "codegen/cpu/attention_pairs_backward.h"

namespace moec {

int64_t group_queries(const AttentionSpec& s) {
  constexpr int64_t kRoom = 768 << 10;
  PairSizes n(s);
  if (n.planes > 1) return kPairQueries;
  const int64_t bytes = 2 * (n.row_k + n.row_v) + 4 * n.dim;
  const int64_t fit = kRoom / bytes / kPairQueries * kPairQueries;
  return std::clamp(fit, kPairQueries,
                    (s.q_len + kPairQueries - 1) / kPairQueries * kPairQueries);
}

std::function<void(V, int)> PairBackward::fetch_from(V streams) {
  return [this, streams](V, int) {
    std::vector<FetchedRows> all;
    for (int i = 0; i < kStreams; ++i) all.push_back(rows_of(i));
    fetch_some(e, streams, all);
  };
}

PairProduct PairBackward::product(V a, int64_t lda, V b, int64_t ldb, V c,
                                  int64_t ldc) {
  PairProduct m{a, lda, b, ldb, c, ldc};
  m.planes = planes;
  m.a_step = m.a_plane * planes;
  return m;
}

Vs PairBackward::plane_rows(V first, V second) {
  if (planes == 1) return {e.to_bf16(first, second)};
  return split_row(e, first, second);
}

void PairBackward::load_stats(Strip& t) {
  for (int j = 0; j < 2; ++j) {
    V lse = e.at(t.stats, j * L);
    t.lse[j] = e.neg(e.vload(DType::F32, lse));
    t.delta[j] = e.vload(DType::F32, e.at(lse, at.delta - at.lse, 1));
  }
}

void PairBackward::weigh_beside(const Strip& t, V i) {
  std::vector<Ty> params(6, Ty::Ptr);
  params.push_back(Ty::I64);
  Fn f = e.define("weigh", params, [&](const Vs& a) {
    Strip two{a[0], a[1], a[2], a[3], a[4], a[5], a[6], e.i(0), e.i(0)};
    load_stats(two);
    two.masked = true;
    weigh(two, e.i(0));
  });
  auto at = [&](V rows, int64_t ld) { return e.at(rows, e.mul(i, ld), 1); };
  // a causal mask compares it with the lanes, else it is what is past the last
  V key = e.add(e.add(t.key, i), s.causal ? t.rel : e.neg(t.left));
  auto make = [&] {
    e.call(f, {at(t.scores, ld), at(t.p, block_row), at(t.ds, block_row),
               at(t.pairs, ld / 2), t.stats, at(t.keep, ld), key});
  };
  e.if_(t.exists ? t.exists : e.i1(true), make);
}

void PairBackward::weigh(const Strip& t, V i) {
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
            x[i], e.at(e.at(row, to, 1), r * block_row + i * 2 * kPairStep, 1),
            2);
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

Fn PairBackward::gradients(bool masked) {
  std::vector<Ty> params(kArgs, Ty::Ptr);
  std::fill(params.begin() + kRel, params.end(), Ty::I64);
  return e.define(masked ? "gm" : "g", params, [&, masked](const Vs& a) {
    Strip strip;
    strip.stats = a[kStats], strip.rel = a[kRel], strip.left = a[kLeft];
    strip.masked = masked;
    if (planes == 1) load_stats(strip);
    auto strip_at = [&](V k, V tile) {
      Strip t = strip;
      t.scores = tile, t.key = k;
      t.p = e.at(a[kWeights], e.mul(k, block_row), 1);
      t.ds = e.at(a[kGradients], e.mul(k, block_row), 1);
      t.pairs = e.at(a[kPairsAt], e.mul(k, ld / 2 * planes), 1);
      t.keep = e.at(a[kKeep], e.mul(k, ld), 1);
      return t;
    };
    auto finish = [&](const Strip& t, V from) {
      e.loop(from, e.i(kPairStep), 2,
             [&](V i) { planes > 1 ? weigh_beside(t, i) : weigh(t, i); });
    };
    // Both products of a strip, each beside half of what is made of the one
    // before.
    auto multiply = [&](V k, V to, const Strip* before) {
      for (int half = 0; half < 2; ++half) {
        const int64_t row = half ? row_v : row_k;
        const int64_t width = half ? size.value_dim : size.dim;
        PairProduct m =
            product(e.at(a[half], e.mul(k, row), 1), row, a[kQueriesAt + half],
                    ld, half ? e.at(to, at.dp - at.s, 1) : to, ld);
        // steps of the sum that do a share each
        const int parts = beside_parts(planes);
        const int shares = width >= 2 * kPairStep ? 2 : 1;
        const int n = int(kPairStep / 4) / shares / parts;  // of two keys
        auto some = [&](V x, int part) {
          auto body = [&] {
            V first = e.mul(e.lshr(x, e.i(5)), 2 * n * parts);
            for (int i = 0; i < n; ++i)
              weigh_beside(*before, e.add(first, half * kPairStep / 2 +
                                                     2 * (part * n + i)));
          };
          if (width == shares * kPairStep) return body();
          e.if_(e.lt(x, e.i(shares * kPairStep)), body);
        };
        if (before) m.beside = some;
        pair_product(e, m, e.i(kPairStep), e.i(width), e.i1(false));
      }
    };
    V low = a[kFrom], high = a[kTo], last = e.add(high, -kPairStep);
    auto add_queries = [&](V from, V n, const Strip* beside) {
      V kt = e.at(a[kKeysT], from, 2 * planes);
      V pairs = e.at(a[kPairsAt], e.mul(from, ld / 2 * planes), 1);
      const int parts = beside_parts(planes);
      e.loop(e.i(0), e.i(size.dim), kPairStep, [&](V d) {
        PairProduct m =
            product(e.at(kt, e.mul(d, at.transposed.row), 1), at.transposed.row,
                    pairs, ld, e.at(a[kQueryGrad], e.mul(d, ld), 1), ld);
        V before = e.mul(d, e.lshr(n, e.i(5)));
        auto some = [&](V x, int part) {
          V i = e.mul(e.lshr(e.add(before, x), e.i(5)), 2 * parts);
          i = e.add(i, 2 * part);
          e.if_(e.lt(i, e.i(kPairStep)), [&] { weigh_beside(*beside, i); });
        };
        if (beside)
          m.beside = some;
        else if (planes > 1)
          m.beside = fetch_from(a[kStreamsAt]);
        pair_product(e, m, e.i(kPairStep), n, e.i1(true));
      });
      if (!beside) return;
      V done = e.mul(e.lshr(n, e.i(5)), 2 * parts * size.dim / kPairStep);
      finish(*beside, e.min(done, e.i(kPairStep)));
    };
    e.if_(e.lt(low, high), [&] {
      Vs tiles = {a[kTiles], e.at(a[kTiles], at.other - at.s, 1)};
      const bool beside = planes > 1;
      V first = low;
      if (beside) {  // the first strip comes beside nothing
        first = e.add(low, -kPairStep);
        std::swap(tiles[0], tiles[1]);
      } else {
        multiply(low, tiles[0], nullptr);
      }
      tiles = e.loop(first, last, kPairStep, tiles, [&](V k, Vs tiles) {
        Strip t = strip_at(k, tiles[0]);
        if (beside) t.exists = e.ge(k, low);
        multiply(e.add(k, kPairStep), tiles[1], beside ? &t : nullptr);
        if (!beside) finish(t, e.i(0));
        return Vs{tiles[1], tiles[0]};
      });
      Strip t = strip_at(last, tiles[0]);
      if (beside) {
        add_queries(low, e.sub(last, low), &t);
        add_queries(last, e.i(kPairStep), nullptr);
      } else {
        finish(t, e.i(0));
      }
    });
  });
}

Fn PairBackward::queries() {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define("q", params, [&](const Vs& a) {
    pair_product(e, product(a[0], at.transposed.row, a[1], ld, a[2], ld),
                 e.i(size.dim), a[3], e.i1(true));
  });
}

Fn PairBackward::outer(int64_t channels) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
  std::string name = "o" + std::to_string(channels);
  return e.define(name, params, [&, channels](const Vs& a) {
    e.loop(e.i(0), e.i(channels), panel, [&](V d) {
      PairProduct m = product(a[0], block_row, e.at(a[1], d), channels * 4,
                              e.at(a[2], d), channels * 4);
      if (planes > 1) m.beside = fetch_from(a[4]);
      pair_product(e, m, e.i(kPairStep), a[3], e.i1(true));
    });
  });
}

}  // namespace moec
