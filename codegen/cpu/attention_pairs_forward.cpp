#include <algorithm>
#include <cmath>
#include <numeric>

#include "codegen/cpu/attention_pairs.h"
#include "support/error.h"

namespace moec {

PairRange pair_range(Emit& e, const AttentionSpec& s, V rel, V left,
                     int64_t room) {
  const int64_t panel = panel_lanes(e.target());
  V zero = e.i(0);
  V end = e.min(ceil_to(e, left, kPairStep), e.i(room));
  if (!s.causal)
    return {zero, zero, e.min(floor_to(e, left, kPairStep), end), end};
  auto keys = [&](int64_t n) { return e.sub(e.i(n), rel); };
  PairRange r;
  r.end = clamp(e, ceil_to(e, keys(panel), kPairStep), zero, end);
  r.whole = clamp(e, floor_to(e, keys(1), kPairStep), zero, r.end);
  r.low = r.first = zero;
  if (s.window) {
    r.first = clamp(e, floor_to(e, keys(1 - s.window), kPairStep), zero, r.end);
    r.low =
        clamp(e, ceil_to(e, keys(panel - s.window), kPairStep), zero, r.end);
  }
  return r;
}

V pair_seen(Emit& e, const AttentionSpec& s, V k, V rel, V left, int col) {
  // under a causal mask keys past the last are past every query, too
  if (s.causal) return lane_mask(e, s, e.add(rel, k), col);
  return e.splat(e.lt(k, left));
}

Vs pair_maxima(Emit& e, const AttentionSpec& s, V scores, int64_t ld, V from,
               V to, Vs best, V first, V rel, V left) {
  const int rows = 8, L = e.lanes();
  return e.loop(from, to, rows, std::move(best), [&](V i, Vs best) {
    V p = e.at(scores, e.mul(i, ld), 1);
    for (int j = 0; j < 2; ++j) {
      Vs x;
      for (int r = 0; r < rows; ++r) {
        V at = e.at(p, r * ld + j * L * 4, 1);
        x.push_back(e.vload(DType::F32, at));
        if (!first) continue;
        V key = e.add(e.add(first, i), r);
        x[r] = e.select(pair_seen(e, s, key, rel, left, j), x[r],
                        e.splat(e.f(-INFINITY)));
        e.vstore(DType::F32, x[r], at);
      }
      for (int n = rows / 2; n; n /= 2)
        for (int r = 0; r < n; ++r) x[r] = e.max(x[r + n], x[r]);
      best[j] = e.max(x[0], best[j]);
    }
    return best;
  });
}

Fn pack_columns_function(Emit& e, const std::string& name, int64_t stride,
                         int64_t channels, bool negate, int planes) {
  const int64_t ld = panel_lanes(e.target()) * 4;
  return e.define(name, {Ty::Ptr, Ty::I64, Ty::I64, Ty::Ptr},
                  [=, &e](const Vs& a) {
                    PairRows rows{a[0], stride, a[1], channels, planes};
                    pack_columns(e, rows, a[2], a[3], ld, negate);
                  });
}

Fn unpack_columns_function(Emit& e, const std::string& name, int64_t stride,
                           int64_t channels, const std::vector<int>& row_of,
                           int planes) {
  const DType dtype = planes > 1 ? DType::F32 : DType::BF16;
  const int64_t ld = panel_lanes(e.target()) * 4;
  return e.define(name, {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64}, [&](const Vs& a) {
    unpack_columns(e, a[0], ld, channels, e.vload(DType::F32, a[1]), a[2],
                   stride, a[3], row_of, dtype);
  });
}

double pair_factor(const AttentionSpec& s) {
  // never 0, which would turn a mask's -inf into NaN
  return std::max(std::fabs(s.scale) * kLog2e, 1e-30);
}

namespace {

constexpr int64_t kBlock = kKeyPanel;  // keys; one task of the packing

// Scratch, in bytes: Q^T pairs, two strips of f32 scores [kPairStep][panel], a
// block of P^T pairs, f32 O^T [Dv][panel], statistics of the online softmax,
// dropout factors.
struct Layout {
  int64_t q, s, p, o, stats, keep, end;
  Layout(const AttentionSpec& spec, int64_t panel) {
    PairSizes n(spec);
    q = 0;
    s = q + n.dim * panel * 2;
    p = s + 2 * kPairStep * panel * 4;
    o = p + kBlock * panel * 2;
    stats = o + n.value_dim * panel * 4;
    keep = stats + 4 * panel * 4;
    end = keep + (spec.dropout > 0 ? kBlock * panel * 4 : 0);
  }
};
// Rows of the statistics. kMax, in base 2, is what weights are taken from, no
// less than the largest; kBest is the largest score of a strip.
enum Stat { kMax, kSum, kBest, kAlpha };
// What kMax is raised above a score that exceeds it, so that few do.
constexpr double kRoom = 8;

struct Forward {
  Emit& e;
  const AttentionSpec& s;
  const int L = e.lanes(), panel = 2 * L, ld = panel * 4;
  const PairSizes size{s};
  const PackedKeys packed{s};
  const bool drop = s.dropout > 0;

  // raise(stats, P, n, Ot, d): kMax above kBest; the sums, the weights of n
  // keys of this block and d channels of the output follow
  Fn raise() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr, Ty::I64};
    return e.define("raise", params, [&](const Vs& a) {
      for (int j = 0; j < 2; ++j) {
        auto stat = [&](Stat k) { return e.at(a[0], k * panel + j * L); };
        V old = e.vload(DType::F32, stat(kMax));
        V best = e.mul(e.vload(DType::F32, stat(kBest)),
                       e.splat(e.f(pair_factor(s))));
        V m = e.select(e.gt(best, old), e.add(best, e.f(kRoom)), old);
        V alpha = exp2_fast(e, e.sub(old, m));
        e.vstore(DType::F32, m, stat(kMax));
        e.vstore(DType::F32, e.mul(e.vload(DType::F32, stat(kSum)), alpha),
                 stat(kSum));
        e.loop(e.i(0), a[2], 2, [&](V k) {
          V at = e.at(e.at(a[1], e.mul(k, ld / 2), 1), j * L);
          V pair = e.load_raw(Ty::I32, at, 0, 4);
          auto scaled = [&](V x) { return e.mul(e.bits(x, Ty::F32), alpha); };
          V low = scaled(e.shl(pair, e.i32(16)));
          V high = scaled(e.and_(pair, e.i32(int64_t(0xffff0000))));
          e.store_raw(round_pair(e, low, high), at, 4);
        });
        e.loop(e.i(0), a[4], 1, [&](V d) {
          V at = e.at(e.at(a[3], e.mul(d, ld), 1), j * L);
          e.vstore(DType::F32, e.mul(e.vload(DType::F32, at), alpha), at);
        });
      }
    });
  }

  // The largest score of a strip, by query, whose keys from `k` on may be
  // masked.
  Vs maxima(V scores, bool masked, V k, V rel, V left) {
    return pair_maxima(e, s, scores, ld, e.i(0), e.i(kPairStep),
                       Vs(2, e.splat(e.f(-INFINITY))), masked ? k : nullptr,
                       rel, left);
  }

  // P = exp2(c S - max) of a strip, and its sums. The first queries see `seen`
  // keys at most, a multiple of 4.
  void soften(V scores, V p, V stats, V keep, V seen) {
    // dropout needs f32 weights
    const bool integer = e.target().vbmi && !drop;
    V factor = e.splat(e.f(pair_factor(s) * (integer ? kPowerSteps : 1)));
    V ones = e.splat(e.i32(0x3f803f80));
    auto stat = [&](Stat k, int j) { return e.at(stats, k * panel + j * L); };
    Vs sums, origin;
    for (int j = 0; j < 2; ++j) {
      sums.push_back(e.vload(DType::F32, stat(kSum, j)));
      V down = e.neg(e.vload(DType::F32, stat(kMax, j)));
      origin.push_back(integer ? power_origin(e, down) : down);
    }
    auto four = [&](V k, Vs sums, bool all) {
      V from = e.at(scores, e.mul(k, ld), 1), to = e.at(p, e.mul(k, ld / 2), 1);
      for (int u = 0; u < 4; u += 2)
        for (int j = 0; j < 2; ++j) {
          if (j == 0 && !all) {
            e.store_raw(e.zero(Ty::I32, 0), e.at(to, u / 2 * ld, 1), 4);
            continue;
          }
          Vs x;
          for (int r = u; r < u + 2; ++r) {
            V score = e.vload(DType::F32, e.at(from, r * ld + j * L * 4, 1));
            x.push_back(e.fma(score, factor, origin[j]));
          }
          V at = e.at(to, u / 2 * ld + j * L * 4, 1);
          if (integer) {  // the sum as they are rounded
            V pair = power_pair(e, x[0], x[1]);
            sums[j] = e.dpbf16(sums[j], pair, ones);
            e.store_raw(pair, at, 4);
            continue;
          }
          for (V& w : x) w = exp2_coarse(e, w);
          sums[j] = e.add(sums[j], e.add(x[0], x[1]));
          for (int r = 0; drop && r < 2; ++r) {
            V row = e.at(keep, e.mul(k, ld), 1);
            row = e.at(row, (u + r) * ld + j * L * 4, 1);
            x[r] = e.mul(x[r], e.vload(DType::F32, row));
          }
          e.store_raw(round_pair(e, x[0], x[1]), at, 4);
        }
      return sums;
    };
    sums = e.loop(e.i(0), seen, 4, sums,
                  [&](V k, Vs sums) { return four(k, sums, true); });
    if (s.causal)
      sums = e.loop(seen, e.i(kPairStep), 4, sums,
                    [&](V k, Vs sums) { return four(k, sums, false); });
    for (int j = 0; j < 2; ++j) e.vstore(DType::F32, sums[j], stat(kSum, j));
  }

  // weights(K, Qt, S, P, stats, keep, Ot, rel, left, d, first, low, whole,
  // end): P of the keys first .. end of a block, of which those low .. whole
  // are not masked; d channels have an output
  Fn weights() {
    std::vector<Ty> params(7, Ty::Ptr);
    params.insert(params.end(), 7, Ty::I64);
    return e.define("w", params, [&](const Vs& a) {
      V from = a[10], to = a[13];
      auto product = [&](V k, V to) {
        pair_product(
            e,
            {e.at(a[0], e.mul(k, packed.row), 1), packed.row, a[1], ld, to, ld},
            e.i(kPairStep), e.i(size.dim), false);
      };
      // The next strip's product comes before what is made of this one's, which
      // by then is stored.
      e.if_(e.lt(from, to), [&] { product(from, a[2]); });
      Vs tiles = {a[2], e.at(a[2], kPairStep * ld, 1)};
      e.loop(from, to, kPairStep, tiles, [&](V k, Vs tiles) {
        V next = e.add(k, kPairStep);
        e.if_(e.lt(next, to), [&] { product(next, tiles[1]); });
        auto largest = [&](bool masked) {
          return
              [&, masked] { return maxima(tiles[0], masked, k, a[7], a[8]); };
        };
        V free = e.lt(k, a[12]);
        if (s.window) free = e.and_(free, e.ge(k, a[11]));
        Vs best = e.if_values(free, largest(false), largest(true));
        V exceeds = nullptr;
        for (int j = 0; j < 2; ++j) {
          V m = e.vload(DType::F32, e.at(a[4], kMax * panel + j * L));
          V over = e.gt(e.mul(best[j], e.splat(e.f(pair_factor(s)))), m);
          exceeds = exceeds ? e.or_(exceeds, over) : over;
        }
        e.if_(e.any(exceeds), [&] {
          for (int j = 0; j < 2; ++j)
            e.vstore(DType::F32, best[j], e.at(a[4], kBest * panel + j * L));
          V done = e.at(a[3], e.mul(from, ld / 2), 1);
          e.call(raise(), {a[4], done, e.sub(k, from), a[6], a[9]});
        });
        V seen = e.i(kPairStep);
        if (s.causal)
          seen = clamp(e, ceil_to(e, e.sub(e.i(L), e.add(a[7], k)), 4), e.i(0),
                       seen);
        soften(tiles[0], e.at(a[3], e.mul(k, ld / 2), 1), a[4],
               drop ? e.at(a[5], e.mul(k, ld), 1) : nullptr, seen);
        return Vs{tiles[1], tiles[0]};
      });
    });
  }

  // values(Vt, P, Ot, n): Ot (+)= V^T P over n keys
  Fn values(bool first) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define(first ? "v0" : "v", params, [&, first](const Vs& a) {
      pair_product(e, {a[0], packed.vt.row, a[1], ld, a[2], ld},
                   e.i(size.value_dim), a[3], !first);
    });
  }

  void kernel() {
    begin_pairs(e);
    const Layout at(s, panel);
    const int64_t panels = (s.q_len + panel - 1) / panel;
    auto part = [&](int64_t bytes) { return e.at(e.scratch(), bytes, 1); };
    // the last panels have most keys: they come first
    V bh = e.div(e.task(), e.i(panels));
    V p = e.sub(e.i(panels - 1), e.rem(e.task(), e.i(panels)));
    V b = e.div(bh, e.i(s.heads)), h = e.rem(bh, e.i(s.heads));
    V q0 = e.mul(p, panel), count = e.min(e.sub(e.i(s.q_len), q0), e.i(panel));
    auto view = [&](int buffer, const AttentionView& v) {
      V index = e.add(e.mul(b, v.batch), e.mul(h, v.head));
      return e.at(e.buffer(buffer), e.add(index, e.mul(q0, v.row)), 2);
    };
    V q = view(0, s.q), o = view(3 + drop, s.o);
    V lse = e.at(e.buffer(4 + drop), e.add(e.mul(bh, s.q_len), q0));
    V kv = e.add(e.mul(b, s.kv_heads), e.div(h, e.i(s.heads / s.kv_heads)));
    V keys = e.at(e.buffer(5 + drop), e.mul(kv, packed.bytes), 1);
    V values_t = e.at(keys, packed.v, 1);
    if (packed.as_it_stands) {
      V head = e.mul(e.div(h, e.i(s.heads / s.kv_heads)), s.k.head);
      keys = e.at(e.buffer(1), e.add(e.mul(b, s.k.batch), head), 2);
    }
    V qt = part(at.q), st = part(at.s), pt = part(at.p), ot = part(at.o);
    V stats = part(at.stats);
    auto stat = [&](Stat k) { return e.at(stats, k * panel); };
    V zero = e.i(0);

    Fn pack = pack_columns_function(e, "pack", s.q.row, s.dim, s.scale < 0, 1);
    for (int j = 0; j < 2; ++j) {
      e.call(pack, {q, count, e.i(j * L), e.at(qt, j * L)});
      e.vstore(DType::F32, e.splat(e.f(kLowest)), e.at(stat(kMax), j * L));
      e.vstore(DType::F32, e.zero(Ty::F32, 0), e.at(stat(kSum), j * L));
    }
    const int64_t shift = s.k_len - s.q_len;
    V from = zero, to = e.i(s.k_len);
    if (s.causal) to = e.min(to, e.add(q0, panel + shift));
    if (s.window)
      from = floor_to(e, e.max(zero, e.add(q0, shift - s.window + 1)), kBlock);
    V key0 = nullptr, key1 = nullptr;
    if (drop) {
      key0 = e.load(DType::U32, e.buffer(3));
      key1 = e.load(DType::U32, e.at(e.buffer(3), 1));
    }
    e.loop(from, to, kBlock, [&](V kb) {
      V rel = e.sub(kb, e.add(q0, shift)), left = e.sub(e.i(s.k_len), kb);
      PairRange r = pair_range(e, s, rel, left, kBlock);
      V k = e.at(keys, e.mul(kb, packed.row), 1);
      if (drop) {
        V row = e.mul(e.add(e.mul(bh, s.q_len), q0), s.k_len);
        for (int j = 0; j < 2; ++j)
          e.call(dropout_factors(e, s, panel),
                 {e.at(part(at.keep), j * L),
                  e.add(e.add(row, j * L * s.k_len), kb), r.end, key0, key1});
      }
      V outputs = e.select(e.eq(kb, from), zero, e.i(size.value_dim));
      e.call(weights(),
             {k, qt, st, pt, stats, part(at.keep), ot, rel, left, outputs,
              r.first, r.low, e.max(r.low, r.whole), r.end});
      V vt = e.at(values_t, e.mul(kb, packed.vt.block / kKeyPanel), 1);
      Vs args = {e.at(vt, r.first, 2), e.at(pt, e.mul(r.first, ld / 2), 1), ot,
                 e.sub(r.end, r.first)};
      e.if_(
          e.eq(kb, from), [&] { e.call(values(true), args); },
          [&] { e.call(values(false), args); });
    });
    std::vector<int> in_order(L);
    std::iota(in_order.begin(), in_order.end(), 0);
    Fn unpack =
        unpack_columns_function(e, "unpack", s.o.row, s.value_dim, in_order, 1);
    for (int j = 0; j < 2; ++j) {
      V sum = e.vload(DType::F32, e.at(stat(kSum), j * L));
      V m = e.vload(DType::F32, e.at(stat(kMax), j * L));
      e.vstore(DType::F32, e.fma(m, e.f(kLn2), e.log(sum)), e.at(lse, j * L),
               e.mask(e.add(count, -j * L)));
      e.vstore(DType::F32, e.div(e.f(1), sum), e.at(stat(kAlpha), j * L));
      e.call(unpack, {e.at(ot, j * L), e.at(stat(kAlpha), j * L),
                      e.at(o, j * L * s.o.row, 2), e.add(count, -j * L)});
    }
    end_pairs(e);
  }
};

struct Pack {
  Emit& e;
  const AttentionSpec& s;

  void kernel() {
    const PackedKeys packed(s);
    const int64_t chunks = (packed.keys + kKeyPanel - 1) / kKeyPanel;
    V kv = e.div(e.task(), e.i(chunks));
    V from = e.mul(e.rem(e.task(), e.i(chunks)), kKeyPanel);
    V n = e.min(e.i(kKeyPanel), e.sub(e.i(packed.keys), from));
    V b = e.div(kv, e.i(s.kv_heads)), h = e.rem(kv, e.i(s.kv_heads));
    auto rows = [&](int buffer, const AttentionView& v, int64_t channels) {
      V base =
          e.at(e.buffer(buffer), e.add(e.mul(b, v.batch), e.mul(h, v.head)), 2);
      return PairRows{base, v.row, e.i(s.k_len), channels};
    };
    V to = e.at(e.buffer(2), e.mul(kv, packed.bytes), 1);
    if (!packed.as_it_stands)
      pack_plain(e, rows(0, s.k, s.dim), from, n,
                 e.at(to, e.mul(from, packed.row), 1), packed.row);
    pack_transposed(e, rows(1, s.v, s.value_dim), from, n,
                    e.at(e.at(to, packed.v, 1),
                         e.mul(from, packed.vt.block / kKeyPanel), 1),
                    packed.vt.row);
  }
};

}  // namespace

int64_t pairs_packed_bytes(const AttentionSpec& s) {
  return s.batch * s.kv_heads * PackedKeys(s).bytes;
}

void emit_pairs_pack(KernelSpec& spec, const AttentionSpec& s) {
  const PackedKeys packed(s);
  spec.emit = [s](Emit& e) { Pack{e, s}.kernel(); };
  spec.tasks =
      s.batch * s.kv_heads * ((packed.keys + kKeyPanel - 1) / kKeyPanel);
}

void emit_pairs_forward(KernelSpec& spec, const AttentionSpec& s,
                        const Target& target) {
  spec.emit = [s](Emit& e) { Forward{e, s}.kernel(); };
  spec.scratch_bytes = Layout(s, panel_lanes(target)).end;
}

}  // namespace moec
