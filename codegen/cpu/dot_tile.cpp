#include "codegen/cpu/dot_tile.h"

#include <algorithm>

#include "codegen/cpu/target.h"

namespace moec {

int dot_tile_weights(const Emit& e, int64_t rows) {
  const int64_t sums = e.target().registers >= 32 ? 24 : 8;
  int64_t w = std::min(8, e.lanes());
  while (w > 1 && w * rows > sums) w /= 2;
  return int(w);
}

Vs zero_sums(Emit& e, const DotTile& t) {
  return Vs(t.weights.size() * t.xs.size(), e.zero(Ty::F32, 0));
}

V element(Emit& e, V base, V index, DType dtype) {
  return e.at(base, index, dtype_size(dtype));
}

Vs dot_tile(Emit& e, const DotTile& t, Vs acc) {
  const int L = e.lanes();
  const size_t w = t.weights.size();
  auto step = [&](V c, V mask, Vs sums) {
    Vs x;
    for (V row : t.xs)
      x.push_back(e.vload(t.x_dtype, element(e, row, c, t.x_dtype), mask));
    for (size_t i = 0; i < w; ++i) {
      V at = element(e, t.weights[i], c, t.weight_dtype);
      V v = e.vload(t.weight_dtype, at, mask);
      for (size_t r = 0; r < x.size(); ++r)
        sums[r * w + i] = e.fma(v, x[r], sums[r * w + i]);
    }
    return sums;
  };
  // Twice as many bf16 weights at once: a word holds an even and an odd one,
  // and each is an f32 where the other half is zero.
  auto pairs = [&](V c, Vs sums) {
    std::vector<int> even, odd;
    for (int l = 0; l < L; ++l) even.push_back(2 * l), odd.push_back(2 * l + 1);
    Vs x0, x1;
    for (V row : t.xs) {
      V low = e.vload(t.x_dtype, element(e, row, c, t.x_dtype));
      V high = e.vload(t.x_dtype, element(e, row, e.add(c, L), t.x_dtype));
      x0.push_back(e.shuffle(low, high, even));
      x1.push_back(e.shuffle(low, high, odd));
    }
    for (size_t i = 0; i < w; ++i) {
      V words = e.load_raw(Ty::I32, element(e, t.weights[i], c, t.weight_dtype),
                           L, 2);
      V first = e.bits(e.shl(words, e.splat(e.i32(16))), Ty::F32);
      V second = e.bits(e.and_(words, e.splat(e.i32(-65536))), Ty::F32);
      for (size_t r = 0; r < x0.size(); ++r) {
        V& sum = sums[r * w + i];
        sum = e.fma(second, x1[r], e.fma(first, x0[r], sum));
      }
    }
    return sums;
  };
  const bool paired = t.weight_dtype == DType::BF16;
  // One line of every row of weights a turn.
  const int64_t line = std::max<int64_t>(L, 64 / dtype_size(t.weight_dtype));
  const int64_t lines = t.length / line * line, whole = t.length / L * L;
  if (lines)
    acc = e.loop(e.i(0), e.i(lines), line, acc, [&](V c, Vs sums) {
      for (V row : t.ahead) e.prefetch(element(e, row, c, t.weight_dtype), 2);
      for (int64_t i = 0; i < line; i += paired ? 2 * L : L)
        sums = paired ? pairs(e.add(c, i), sums)
                      : step(e.add(c, i), nullptr, sums);
      return sums;
    });
  for (int64_t c = lines; c < whole; c += L) acc = step(e.i(c), nullptr, acc);
  if (whole < t.length)
    acc = step(e.i(whole), e.mask(e.i(t.length - whole)), acc);
  return acc;
}

V sums_of(Emit& e, Vs v) {
  if (v.size() == 1) return e.hsum(v[0]);
  const int width = e.width(v[0]);
  // Every vector holds the partial sums of `held` of them, one after another.
  int held = 1;
  auto halves = [&](V a, V b) {
    std::vector<int> low, high;
    const int part = width / held;
    for (int source = 0; source < (b ? 2 : 1); ++source)
      for (int i = 0; i < held; ++i)
        for (int l = 0; l < part / 2; ++l) {
          low.push_back(source * width + i * part + l);
          high.push_back(low.back() + part / 2);
        }
    return e.add(e.shuffle(a, b, low), e.shuffle(a, b, high));
  };
  for (; v.size() > 1; held *= 2) {
    Vs next;
    for (size_t i = 0; i < v.size(); i += 2)
      next.push_back(halves(v[i], v[i + 1]));
    v = next;
  }
  V all = v[0];
  for (int part = width / held; part > 1; part /= 2) {
    std::vector<int> low, high;
    for (int i = 0; i < held; ++i)
      for (int l = 0; l < part / 2; ++l) {
        low.push_back(i * part + l);
        high.push_back(i * part + l + part / 2);
      }
    all = e.add(e.shuffle(all, nullptr, low), e.shuffle(all, nullptr, high));
  }
  return all;
}

int64_t streamed_rows(int64_t rows, int64_t row_bytes, int64_t unit) {
  const int64_t total = rows * row_bytes;
  // The first rows of a task are not fetched ahead, so short ones cost.
  int64_t bytes = std::clamp<int64_t>(total / 32, 64 << 10, 128 << 10);
  int64_t n = std::max<int64_t>(1, bytes / std::max<int64_t>(row_bytes, 1));
  return (n + unit - 1) / unit * unit;
}

}  // namespace moec
