#include "codegen/cpu/gemv.h"

#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/dot_tile.h"

namespace moec {
namespace {

struct Gemv {
  Emit& e;
  const GemvSpec& s;

  // Y of `count` weight rows from n on; while they are read, as many rows
  // `ahead` elements further are fetched.
  void tile(V n, int count, V ahead) const {
    DotTile t;
    t.weight_dtype = s.weights;
    t.x_dtype = s.x;
    t.length = s.k;
    V first = element(e, e.buffer(1), e.mul(n, s.k), s.weights);
    for (int i = 0; i < count; ++i) {
      V row = element(e, first, e.i(i * s.k), s.weights);
      t.weights.push_back(row);
      if (ahead) t.ahead.push_back(element(e, row, ahead, s.weights));
    }
    for (int64_t r = 0; r < s.rows; ++r)
      t.xs.push_back(element(e, e.buffer(0), e.i(r * s.k), s.x));
    Vs sums = dot_tile(e, t, zero_sums(e, t));
    for (int64_t r = 0; r < s.rows; ++r) {
      auto from = sums.begin() + r * count;
      V y = sums_of(e, Vs(from, from + count));
      if (s.scale != 1) y = e.mul(y, e.f(s.scale));
      V to = element(e, e.buffer(2), e.add(n, r * s.n), s.y);
      if (count == 1)
        e.store(s.y, y, to);
      else
        e.vstore(s.y, y, to);
    }
  }
};

}  // namespace

KernelSpec gemv_kernel(const GemvSpec& s, const Target& target) {
  const int64_t row_bytes = s.k * dtype_size(s.weights);
  const int64_t per_task = streamed_rows(s.n, row_bytes, 8);
  KernelSpec k;
  k.key = fmt::format("gemv {} {} -> {} {}x{}x{} scale {:a} by {}",
                      dtype_name(s.x), dtype_name(s.weights), dtype_name(s.y),
                      s.rows, s.n, s.k, s.scale, per_task);
  k.tasks = (s.n + per_task - 1) / per_task;
  k.flops = 2.0 * double(s.rows) * double(s.n) * double(s.k);
  k.bytes = double(s.n * row_bytes + s.rows * s.k * dtype_size(s.x) +
                   s.rows * s.n * dtype_size(s.y));
  k.emit = [s, per_task](Emit& e) {
    const Gemv g{e, s};
    const int w = dot_tile_weights(e, s.rows);
    V first = e.mul(e.task(), per_task);
    V end = e.min(e.add(first, per_task), e.i(s.n));
    V whole = e.add(first, e.and_(e.sub(end, first), e.i(-int64_t(w))));
    if (s.n >= w)
      e.loop(first, whole, w, [&](V n) {
        V more = e.le(e.add(n, 2 * w), whole);
        g.tile(n, w, e.select(more, e.i(w * s.k), e.i(0)));
      });
    if (s.n % w) e.loop(whole, end, 1, [&](V n) { g.tile(n, 1, nullptr); });
  };
  return k;
}

}  // namespace moec
