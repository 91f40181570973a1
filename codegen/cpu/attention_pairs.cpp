#include "codegen/cpu/attention_pairs.h"

#include <algorithm>
#include <cmath>

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

Fn pack_columns_function(Emit& e, int64_t stride, int64_t channels, bool negate,
                         int planes) {
  const int64_t ld = panel_lanes(e.target()) * 4;
  const std::string name = "pack" + std::to_string(stride) + "_" +
                           std::to_string(channels) + (negate ? "neg" : "");
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
    const PairRows v = rows(1, s.v, s.value_dim);
    V block = e.at(to, packed.v, 1);
    block = e.at(block,
                 e.mul(e.div(from, e.i(packed.block_keys)), packed.block), 1);
    block = e.at(block,
                 e.mul(e.rem(from, e.i(packed.block_keys)), 2 * kPairStep), 1);
    e.loop(e.i(0), n, kPairStep, [&](V k) {
      auto strip = [&](V c, int64_t channels) {
        PairRows some = v;
        some.base = e.at(v.base, c, 2), some.channels = channels;
        V strip = e.at(block, e.mul(e.lshr(c, e.i(5)), packed.strip), 1);
        pack_transposed(e, some, e.add(from, k), e.i(kPairStep),
                        e.at(strip, e.mul(k, 2 * kPairStep), 1), 2 * kPairStep);
      };
      const int64_t whole = s.value_dim / kPairStep * kPairStep;
      if (whole)
        e.loop(e.i(0), e.i(whole), kPairStep,
               [&](V c) { strip(c, kPairStep); });
      if (whole < s.value_dim) strip(e.i(whole), s.value_dim - whole);
    });
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

}  // namespace moec
