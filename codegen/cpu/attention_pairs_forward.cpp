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

// Scratch, in bytes: Q^T pairs, f32 scores [block][panel], P^T pairs, f32 O^T
// [Dv][panel], statistics of the online softmax, dropout factors.
struct Layout {
  int64_t q, s, p, o, stats, keep, end;
  Layout(const AttentionSpec& spec, int64_t panel) {
    PairSizes n(spec);
    q = 0;
    s = q + n.dim * panel * 2;
    p = s + kBlock * panel * 4;
    o = p + kBlock * panel * 2;
    stats = o + n.value_dim * panel * 4;
    keep = stats + 4 * panel * 4;
    end = keep + (spec.dropout > 0 ? kBlock * panel * 4 : 0);
  }
};
// Rows of the statistics. kMax is of what is summed, in base 2; kBest is of the
// scores as they stand.
enum Stat { kMax, kSum, kBest, kAlpha };

struct Forward {
  Emit& e;
  const AttentionSpec& s;
  const int L = e.lanes(), panel = 2 * L, ld = panel * 4;
  const PairSizes size{s};
  const PackedKeys packed{s};
  const bool drop = s.dropout > 0;

  // scores(K, Qt, S, best, rel, left, from, to): and the running maxima
  Fn scores(bool masked) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::Ptr,
                              Ty::I64, Ty::I64, Ty::I64, Ty::I64};
    return e.define(masked ? "sm" : "s", params, [&, masked](const Vs& a) {
      Vs best;
      for (int j = 0; j < 2; ++j)
        best.push_back(e.vload(DType::F32, e.at(a[3], j * L)));
      auto product = [&](V k) {
        pair_product(e,
                     {e.at(a[0], e.mul(k, packed.row), 1), packed.row, a[1], ld,
                      e.at(a[2], e.mul(k, ld), 1), ld},
                     e.i(kPairStep), e.i(size.dim), false);
      };
      auto maxima = [&](V k, Vs best) {
        V to = e.at(a[2], e.mul(k, ld), 1);
        const int rows = 8;
        return e.loop(e.i(0), e.i(kPairStep), rows, best, [&](V i, Vs best) {
          V p = e.at(to, e.mul(i, ld), 1);
          for (int j = 0; j < 2; ++j) {
            Vs x;
            for (int r = 0; r < rows; ++r) {
              V at = e.at(p, r * ld + j * L * 4, 1);
              x.push_back(e.vload(DType::F32, at));
              if (!masked) continue;
              V key = e.add(e.add(k, i), r);
              x[r] = e.select(pair_seen(e, s, key, a[4], a[5], j), x[r],
                              e.splat(e.f(-INFINITY)));
              e.vstore(DType::F32, x[r], at);
            }
            for (int n = rows / 2; n; n /= 2)
              for (int r = 0; r < n; ++r) x[r] = e.max(x[r + n], x[r]);
            best[j] = e.max(x[0], best[j]);
          }
          return best;
        });
      };
      // A strip's maxima come after the next strip's product, by when it is
      // stored.
      e.if_(e.lt(a[6], a[7]), [&] { product(a[6]); });
      V second = e.add(a[6], kPairStep);
      best = e.loop(second, a[7], kPairStep, best, [&](V k, Vs best) {
        product(k);
        return maxima(e.add(k, -kPairStep), best);
      });
      V last = e.max(a[6], e.add(a[7], -kPairStep));
      best = e.loop(last, a[7], kPairStep, best, maxima);
      for (int j = 0; j < 2; ++j)
        e.vstore(DType::F32, best[j], e.at(a[3], j * L));
    });
  }

  // soften(S, P, stats, seen, n, keep): P = exp2(c S - max) for the first
  // `seen` keys, a multiple of 4, and lanes() queries; zeros up to n
  Fn soften() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr,
                              Ty::I64, Ty::I64, Ty::Ptr};
    return e.define("soften", params, [&](const Vs& a) {
      auto stat = [&](Stat k) { return e.at(a[2], k * panel); };
      V factor = e.splat(e.f(pair_factor(s)));
      V old = e.vload(DType::F32, stat(kMax));
      V m = e.mul(e.vload(DType::F32, stat(kBest)), factor);
      m = e.max(e.max(m, e.f(kLowest)), old);
      V alpha = exp2_fast(e, e.sub(old, m)), down = e.neg(m);
      auto weight = [&](V at) {
        return exp2_coarse(e, e.fma(e.vload(DType::F32, at), factor, down));
      };
      // dropout needs f32 weights
      const bool integer = e.target().vbmi && !drop;
      V steps = e.splat(e.f(pair_factor(s) * kPowerSteps));
      V origin = integer ? power_origin(e, down) : nullptr;
      V ones = e.splat(e.i32(0x3f803f80));
      auto power = [&](V at) {
        return e.fma(e.vload(DType::F32, at), steps, origin);
      };
      Vs sums = {e.mul(e.vload(DType::F32, stat(kSum)), alpha),
                 e.zero(Ty::F32, 0)};
      sums = e.loop(e.i(0), a[3], 4, sums, [&](V k, Vs sums) {
        V from = e.at(a[0], e.mul(k, ld), 1),
          to = e.at(a[1], e.mul(k, ld / 2), 1);
        V keep = drop ? e.at(a[5], e.mul(k, ld), 1) : nullptr;
        Vs x;
        for (int u = 0; integer && u < 2; ++u) {  // their sums as rounded
          auto row = [&](int r) {
            return power(e.at(from, (2 * u + r) * ld, 1));
          };
          V pair = power_pair(e, row(0), row(1));
          sums[u] = e.dpbf16(sums[u], pair, ones);
          e.store_raw(pair, e.at(to, u * ld, 1), 4);
        }
        if (integer) return sums;
        for (int u = 0; u < 4; ++u) x.push_back(weight(e.at(from, u * ld, 1)));
        sums[0] = e.add(sums[0], e.add(x[0], x[1]));
        sums[1] = e.add(sums[1], e.add(x[2], x[3]));
        for (int u = 0; drop && u < 4; ++u)
          x[u] = e.mul(x[u], e.vload(DType::F32, e.at(keep, u * ld, 1)));
        for (int u = 0; u < 4; u += 2)
          e.store_raw(round_pair(e, x[u], x[u + 1]), e.at(to, u / 2 * ld, 1),
                      4);
        return sums;
      });
      e.loop(a[3], a[4], 2, [&](V k) {
        e.store_raw(e.zero(Ty::I32, 0), e.at(a[1], e.mul(k, ld / 2), 1), 4);
      });
      e.vstore(DType::F32, m, stat(kMax));
      e.vstore(DType::F32, e.add(sums[0], sums[1]), stat(kSum));
      e.vstore(DType::F32, alpha, stat(kAlpha));
    });
  }

  // values(Vt, P, Ot, alpha, n): Ot = alpha Ot + V^T P over n keys
  Fn values(bool first) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define(first ? "v0" : "v", params, [&, first](const Vs& a) {
      for (int j = 0; j < 2 && !first; ++j) {
        V alpha = e.vload(DType::F32, e.at(a[3], j * L));
        e.loop(e.i(0), e.i(size.value_dim), 4, [&](V d) {
          V row = e.at(e.at(a[2], e.mul(d, ld), 1), j * L);
          for (int u = 0; u < 4; ++u) {
            V at = e.at(row, u * ld, 1);
            e.vstore(DType::F32, e.mul(e.vload(DType::F32, at), alpha), at);
          }
        });
      }
      pair_product(e, {a[0], packed.vt.row, a[1], ld, a[2], ld},
                   e.i(size.value_dim), a[4], !first);
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
      e.vstore(DType::F32, e.splat(e.f(-INFINITY)), e.at(stat(kBest), j * L));
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
      auto part_of = [&](bool masked, V from, V to) {
        e.call(scores(masked), {k, qt, st, stat(kBest), rel, left, from, to});
      };
      if (s.window) part_of(true, r.first, r.low);
      V free = e.max(r.low, r.whole);
      part_of(false, r.low, free);
      part_of(true, free, r.end);
      if (drop) {
        V row = e.mul(e.add(e.mul(bh, s.q_len), q0), s.k_len);
        for (int j = 0; j < 2; ++j)
          e.call(dropout_factors(e, s, panel),
                 {e.at(part(at.keep), j * L),
                  e.add(e.add(row, j * L * s.k_len), kb), r.end, key0, key1});
      }
      V n = e.sub(r.end, r.first);
      auto from_first = [&](V p, int64_t row) {
        return e.at(p, e.mul(r.first, row), 1);
      };
      for (int j = 0; j < 2; ++j) {
        V seen = r.end;
        if (s.causal)
          seen = clamp(e, ceil_to(e, e.sub(e.i((j + 1) * L), rel), 4), r.first,
                       r.end);
        e.call(soften(), {from_first(e.at(st, j * L), ld),
                          from_first(e.at(pt, j * L), ld / 2),
                          e.at(stats, j * L), e.sub(seen, r.first), n,
                          from_first(e.at(part(at.keep), j * L), ld)});
      }
      V vt = e.at(values_t, e.mul(kb, packed.vt.block / kKeyPanel), 1);
      Vs args = {e.at(vt, r.first, 2), from_first(pt, ld / 2), ot, stat(kAlpha),
                 n};
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
