#include "codegen/cpu/attention_backward.h"

#include <fmt/format.h>

#include <algorithm>

namespace moec {

namespace {

// A tile whose sums start from a value per query.
Vs tile_from(Emit& e, LaneTile t, V p) {
  Vs sums(size_t(t.rows) * t.cols);
  for (size_t i = 0; i < sums.size(); ++i)
    sums[i] = i < size_t(t.cols)
                  ? e.vload(DType::F32, e.at(p, int64_t(i) * t.width))
                  : sums[i - t.cols];
  return sums;
}

}  // namespace

Fn BackwardTiles::gradients(int R, int C, bool masked) {
  std::string name = fmt::format("g{}{}{}", R, C, masked ? "m" : "");
  std::vector<Ty> params(7, Ty::Ptr);
  params.insert(params.end(), {Ty::I64, Ty::I64, Ty::I64, Ty::Ptr});
  return e.define(name, params, [&, R, C, masked](const Vs& a) {
    LaneTile t{R, C, L};
    e.loop(a[8], a[9], R, [&](V k) {
      V keys = e.at(a[0], e.mul(k, s.k.row));
      V row = e.mul(k, kBlockRow);
      V p = e.at(a[4], row), ds = e.at(a[5], row);
      Vs c = tile_product(e, t, tile_from(e, t, a[6]), {{keys, s.k.row, 1}},
                          a[2], panel, e.i(s.dim), nullptr,
                          {fetch_ahead(e, s, a[0], k, s.k, s.dim, true),
                           fetch_ahead(e, s, a[1], k, s.v, s.value_dim, true)});
      for (int j = 0; j < C; ++j) {
        for (int i = 0; i < R; ++i) {
          V x = exp2_fast(e, c[i * C + j]);
          if (masked)
            x = e.select(lane_mask(e, s, e.add(e.add(a[7], k), i), j), x,
                         e.zero(Ty::F32, 0));
          e.vstore(DType::F32, x, e.at(p, i * kBlockRow + j * L));
        }
      }
      V values = e.at(a[1], e.mul(k, s.v.row));
      V deltas = e.at(a[6], at.delta - at.lse);
      c = tile_product(e, t, drop ? zero_tile(e, t) : tile_from(e, t, deltas),
                       {{values, s.v.row, 1}}, a[3], panel, e.i(s.value_dim));
      V keep = drop ? e.at(a[10], e.mul(k, panel)) : nullptr;
      for (int j = 0; j < C; ++j) {
        V delta = e.vload(DType::F32, e.at(deltas, j * L));
        for (int i = 0; i < R; ++i) {
          V to = e.at(p, i * kBlockRow + j * L);
          V x = e.vload(DType::F32, to), g = c[i * C + j];
          if (drop) {
            V f = e.vload(DType::F32, e.at(keep, i * panel + j * L));
            e.vstore(DType::F32, e.mul(x, f), to);
            g = e.fma(g, f, delta);
          }
          e.vstore(DType::F32, e.mul(x, g), e.at(ds, i * kBlockRow + j * L));
        }
      }
    });
  });
}

Fn BackwardTiles::queries(int C) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define("q" + std::to_string(C), params, [&, C](const Vs& a) {
    auto block = [&](V d, int R) {
      LaneTile t{R, C, L};
      V to = e.at(a[2], e.mul(d, panel));
      Vs c = tile_product(e, t, load_tile(e, t, to, panel),
                          {{e.at(a[0], d), 1, s.k.row}}, a[1], kBlockRow, a[3]);
      store_tile(e, t, c, to, panel);
    };
    // many channels: tall tiles, which load least, in fours, since low ones
    // then fill what is left
    const int64_t tall = many && s.dim >= 128 ? s.dim / 56 * 56 : 0;
    const int64_t whole = tall + (s.dim - tall) / rows * rows;
    if (tall) e.loop(e.i(0), e.i(tall), 14, [&](V d) { block(d, 14); });
    if (whole > tall)
      e.loop(e.i(tall), e.i(whole), rows, [&](V d) { block(d, rows); });
    if (whole < s.dim) block(e.i(whole), int(s.dim - whole));
  });
}

Fn BackwardTiles::unseen() {
  return e.define("u", {Ty::Ptr, Ty::Ptr, Ty::I64}, [&](const Vs& a) {
    e.loop(e.i(0), a[2], 1, [&](V k) {
      for (int i = 0; i < 2; ++i)
        e.vstore(DType::F32, e.zero(Ty::F32, 0),
                 e.at(a[i], e.mul(k, kBlockRow)));
    });
  });
}

Fn BackwardTiles::outer(int R, int cols, int last, int64_t ldx, int64_t ldc,
                        bool write) {
  std::string name =
      fmt::format("o_{}_{}_{}_{}_{}_{}", R, cols, last, ldx, ldc, int(write));
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64,
                            Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64};
  return e.define(name, params, [=, this](const Vs& a) {
    // four vectors beside few keys, whose sums fit in the registers
    const int width = R <= kTallRows / 2 ? cols : std::min(cols, 2);
    V old = e.mask(a[4]);
    for (int from = 0; from < cols; from += width) {
      LaneTile t{R, width, L};
      V mask = last < L ? e.mask(e.i(last)) : nullptr;
      V to = e.at(a[2], from * L);
      Vs c;
      for (int i = 0; i < R; ++i)
        for (int j = 0; j < width; ++j) {
          V lanes = mask && j + 1 == width ? e.and_(old, mask) : old;
          c.push_back(e.vload(DType::F32, e.at(to, i * ldc + j * L), lanes));
        }
      // and the sums of later keys: whole rows one after the other, or a line
      // of each
      const int64_t apart =
          cols * L == ldc ? spread(R * ldc, kQueryBlock) : ldc;
      std::vector<Prefetch> prefetch = {
          {e.at(to, 2 * kTallRows * ldc), e.i(apart), 3, true},
          {a[6], a[8], 2, write}};
      if (!copies) prefetch.push_back({a[5], a[7], 2});
      c = tile_product(e, t, c, {{a[0], kBlockRow, 1}}, e.at(a[1], from * L),
                       ldx, a[3], mask, prefetch);
      store_tile(e, t, c, to, ldc, mask);
    }
  });
}

void BackwardTiles::statistics(V o, V dout, V count, V lse_in, V lse, V delta) {
  const int64_t width = s.value_dim;
  e.loop(e.i(0), count, 1, [&](V q) {
    V po = e.at(o, e.mul(q, in.o.row)), pd = e.at(dout, e.mul(q, s.o.row));
    auto step = [&](V c, Vs sum, V mask) {
      return Vs{e.fma(e.vload(DType::F32, e.at(po, c), mask),
                      e.vload(DType::F32, e.at(pd, c), mask), sum[0])};
    };
    const int64_t whole = width / L * L;
    Vs sum = e.loop(e.i(0), e.i(whole), L, {e.zero(Ty::F32, 0)},
                    [&](V c, Vs x) { return step(c, x, nullptr); });
    if (whole < width) sum = step(e.i(whole), sum, e.mask(e.i(width - whole)));
    e.store(DType::F32, e.mul(e.hsum(sum[0]), e.f(-s.scale)), e.at(delta, q));
    e.store(DType::F32,
            e.mul(e.load(DType::F32, e.at(lse_in, q)), e.f(-kLog2e)),
            e.at(lse, q));
  });
  e.loop(count, ceil_to(e, count, panel), 1, [&](V q) {
    e.store(DType::F32, e.f(kLowest), e.at(lse, q));
    e.store(DType::F32, e.f(0), e.at(delta, q));
  });
}

}  // namespace moec
