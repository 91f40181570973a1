#include "codegen/cpu/lane_tile.h"

#include "support/error.h"

namespace moec {

namespace {

V column_mask(LaneTile t, int col, V mask) {
  return col == t.cols - 1 ? mask : nullptr;
}

}  // namespace

LaneTile channel_tile(int64_t channels, const Target& t) {
  const bool many = t.registers >= 32;
  if (many && channels % (3 * t.lanes) == 0) return {8, 3, t.lanes};
  return {many ? 14 : 4, 2, t.lanes};
}

LaneTile row_tile(int vectors, const Target& t) {
  const int rows = t.registers < 32 || vectors > 3 ? 4 : 20 - 4 * vectors;
  return {rows, vectors, t.lanes};
}

Vs zero_tile(Emit& e, LaneTile t) {
  return Vs(size_t(t.rows) * t.cols, e.zero(Ty::F32, t.width));
}

Vs load_tile(Emit& e, LaneTile t, V p, int64_t ld, V mask) {
  Vs acc;
  for (int i = 0; i < t.rows; ++i)
    for (int j = 0; j < t.cols; ++j)
      acc.push_back(e.vload(DType::F32, e.at(p, i * ld + j * t.width),
                            column_mask(t, j, mask), t.width));
  return acc;
}

void store_tile(Emit& e, LaneTile t, const Vs& acc, V p, int64_t ld, V mask) {
  for (int i = 0; i < t.rows; ++i)
    for (int j = 0; j < t.cols; ++j)
      e.vstore(DType::F32, acc[i * t.cols + j], e.at(p, i * ld + j * t.width),
               column_mask(t, j, mask));
}

Vs tile_product(Emit& e, LaneTile t, Vs acc, const std::vector<Bcast>& a, V b,
                int64_t ldb, V count, V mask,
                const std::vector<Prefetch>& prefetch) {
  const int groups = int(a.size()), per_group = t.rows / groups;
  MOEC_CHECK(per_group * groups == t.rows);
  // carried: sums, then the running addresses of B and of each group of A
  Vs carried = std::move(acc);
  const size_t sums = carried.size();
  carried.push_back(b);
  for (const Bcast& g : a) carried.push_back(g.base);
  for (const Prefetch& p : prefetch) carried.push_back(p.base);
  auto step = [&](Vs c, int u) {
    V pb = e.at(c[sums], u * ldb);
    Vs lanes;
    for (int j = 0; j < t.cols; ++j)
      lanes.push_back(e.vload(DType::F32, e.at(pb, j * t.width),
                              column_mask(t, j, mask), t.width));
    for (int g = 0; g < groups; ++g)
      for (int r = 0; r < per_group; ++r) {
        V scalar =
            e.load(DType::F32,
                   e.at(c[sums + 1 + g], r * a[g].row_stride + u * a[g].step));
        V row = e.splat(scalar, t.width);
        for (int j = 0; j < t.cols; ++j) {
          V& sum = c[size_t(g * per_group + r) * t.cols + j];
          sum = e.fma(row, lanes[j], sum);
        }
      }
    return c;
  };
  auto advance = [&](Vs c, int n) {
    c[sums] = e.at(c[sums], n * ldb);
    for (int g = 0; g < groups; ++g)
      c[sums + 1 + g] = e.at(c[sums + 1 + g], n * a[g].step);
    return c;
  };
  // scalar work takes turns with the FMA on two ports: several steps share it
  const int steps = prefetch.empty() ? 2 : 4;
  V whole = e.and_(count, e.i(-steps));
  carried = e.loop(e.i(0), whole, steps, carried, [&](V, Vs c) {
    for (int u = 0; u < steps; ++u) {
      for (size_t k = 0; u % 2 == 0 && k < prefetch.size(); ++k) {
        V& p = c[sums + 1 + groups + k];
        e.prefetch(p, prefetch[k].locality, prefetch[k].write);
        p = e.at(p, prefetch[k].stride);
      }
      c = step(std::move(c), u);
    }
    return advance(std::move(c), steps);
  });
  carried = e.loop(whole, count, 1, carried,
                   [&](V, Vs c) { return advance(step(std::move(c), 0), 1); });
  carried.resize(sums);
  return carried;
}

Fn pack_tiles(Emit& e, const char* name, int rows, int64_t ld, int64_t pitch,
              int rest) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64};
  return e.define(name, params, [&, rows, ld, pitch, rest](const Vs& a) {
    V tiles = e.div(a[3], e.i(rows)), pairs = e.and_(tiles, e.i(-2));
    e.loop(e.i(0), a[2], 1, [&](V k) {
      V from = e.at(a[0], e.mul(k, ld)), to = e.at(a[1], e.mul(k, rows));
      auto tile_at = [&](V tile) { return e.at(to, e.mul(tile, pitch)); };
      e.loop(e.i(0), pairs, 2, [&](V tile) {
        V at = e.at(from, e.mul(tile, rows)), p = tile_at(tile);
        V x = e.vload(DType::F32, at, nullptr, 2 * rows);
        e.vstore(DType::F32, e.slice(x, 0, rows), p);
        e.vstore(DType::F32, e.slice(x, rows, rows), e.at(p, pitch));
      });
      auto one = [&](V tile, int columns) {
        V mask = columns < rows ? e.mask(e.i(columns), rows) : nullptr;
        V at = e.at(from, e.mul(tile, rows));
        e.vstore(DType::F32, e.vload(DType::F32, at, mask, rows),
                 tile_at(tile));
      };
      e.if_(e.lt(pairs, tiles), [&] { one(pairs, rows); });
      if (rest)
        e.if_(e.lt(e.mul(tiles, rows), a[3]), [&] { one(tiles, rest); });
    });
  });
}

Vs clamped_rows(Emit& e, V base, int64_t stride, V count) {
  Vs rows;
  V last = e.add(count, -1);
  for (int r = 0; r < e.lanes(); ++r)
    rows.push_back(e.at(base, e.mul(e.min(e.i(r), last), stride)));
  return rows;
}

void pack_rows(Emit& e, const Vs& rows, int64_t cols, V dst, int64_t ld,
               V scale, int64_t ahead) {
  const int L = e.lanes();
  auto block = [&](V c, int n) {
    V mask = n < L ? e.mask(e.i(n)) : nullptr;
    Vs v;
    for (V row : rows) {
      V x = e.vload(DType::F32, e.at(row, c), mask, L);
      v.push_back(scale ? e.mul(x, scale) : x);
      if (ahead) e.prefetch(e.at(e.at(row, c), ahead));
    }
    v = e.transpose(v);
    V p = e.at(dst, e.mul(c, ld));
    for (int k = 0; k < n; ++k) e.vstore(DType::F32, v[k], e.at(p, k * ld));
  };
  const int64_t whole = cols / L * L;
  if (whole) e.loop(e.i(0), e.i(whole), L, [&](V c) { block(c, L); });
  if (whole < cols) block(e.i(whole), int(cols - whole));
}

void unpack_rows(Emit& e, V src, int64_t ld, int64_t cols, V factor,
                 const std::function<V(int)>& row, V count) {
  const int L = e.lanes();
  Vs to;
  for (int r = 0; r < L; ++r) to.push_back(row(r));
  auto block = [&](V c, int n) {
    V p = e.at(src, e.mul(c, ld));
    Vs v;
    for (int k = 0; k < L; ++k) {
      V x = k < n ? e.vload(DType::F32, e.at(p, k * ld)) : e.zero(Ty::F32, 0);
      v.push_back(factor ? e.mul(x, factor) : x);
    }
    v = e.transpose(v);
    V mask = n < L ? e.mask(e.i(n)) : nullptr;
    e.if_(
        e.ge(count, e.i(L)),
        [&] {
          for (int r = 0; r < L; ++r)
            e.vstore(DType::F32, v[r], e.at(to[r], c), mask);
        },
        [&] {
          for (int r = 0; r < L; ++r)
            e.if_(e.lt(e.i(r), count),
                  [&] { e.vstore(DType::F32, v[r], e.at(to[r], c), mask); });
        });
  };
  const int64_t whole = cols / L * L;
  if (whole) e.loop(e.i(0), e.i(whole), L, [&](V c) { block(c, L); });
  if (whole < cols) block(e.i(whole), int(cols - whole));
}

void copy_rows(Emit& e, V src, int64_t src_row, V dst, int64_t dst_row,
               int64_t width, V count) {
  const int64_t L = e.lanes(), whole = width / L * L;
  e.loop(e.i(0), count, 1, [&](V r) {
    V from = e.at(src, e.mul(r, src_row)), to = e.at(dst, e.mul(r, dst_row));
    auto step = [&](V c, V mask) {
      e.vstore(DType::F32, e.vload(DType::F32, e.at(from, c), mask),
               e.at(to, c), mask);
    };
    e.loop(e.i(0), e.i(whole), L, [&](V c) { step(c, nullptr); });
    if (whole < width) step(e.i(whole), e.mask(e.i(width - whole)));
  });
}

void zero_fill(Emit& e, V p, V count) {
  const int L = e.lanes();
  V whole = e.mul(e.div(count, e.i(L)), L);
  e.loop(e.i(0), whole, L,
         [&](V k) { e.vstore(DType::F32, e.zero(Ty::F32, 0), e.at(p, k)); });
  e.loop(whole, count, 1,
         [&](V k) { e.store(DType::F32, e.f(0), e.at(p, k)); });
}

V sigmoid_fast(Emit& e, V x) {
  // bounded, so that the sum stays finite
  V z = e.min(e.f(126), e.mul(x, e.f(-kLog2e)));
  return e.reciprocal(e.add(e.f(1), exp2_fast(e, z)));
}

V exp2_fast(Emit& e, V x) {
  if (e.target().avx512 && e.width(x) == e.lanes()) {
    V r = e.fraction(x), p = e.f(1.877576695e-3);
    for (double c : {8.989340626e-3, 5.582631752e-2, 2.401536107e-1,
                     6.931530833e-1, 9.999999404e-1})
      p = e.fma(p, r, e.f(c));
    return e.scale_power(p, x);
  }
  // the exponent field n + 127 is 0 for the smallest x: a factor of zero
  V magic = e.f(12582912.0 + 127);
  x = e.max(e.f(-127), x);
  V t = e.add(x, magic);
  V r = e.sub(x, e.sub(t, magic));
  V p = e.f(1.3276470126e-3);
  for (double c : {9.6755418926e-3, 5.5507134646e-2, 2.4022120237e-1,
                   6.9314694405e-1, 1.0000001192})
    p = e.fma(p, r, e.f(c));
  return e.mul(p, e.bits(e.shl(e.bits(t, Ty::I32), e.i32(23)), Ty::F32));
}

}  // namespace moec
