#include "codegen/cpu/moe_backward_tiles.h"

namespace moec {

namespace {

std::string tile_name(const char* name, LaneTile t, int64_t columns) {
  return name + std::to_string(t.rows) + "_" + std::to_string(columns);
}

}  // namespace

V HiddenTiles::mask(const ColumnRun& r) const {
  const int64_t last = r.columns(e) - (r.width(e) - L);
  return last < L ? e.mask(e.i(last)) : nullptr;
}

void HiddenTiles::for_row_tiles(
    V rows, int vectors,
    const std::function<void(LaneTile, int first)>& f) const {
  const int tall = row_tile(vectors, e.target()).rows;
  std::function<void(int, int)> cover = [&](int first, int height) {
    const int end = first + height;
    auto whole = [&] {
      f({height, vectors, L}, first);
      if (end < L)
        e.if_(e.gt(rows, e.i(end)),
              [&] { cover(end, std::min(tall, L - end)); });
    };
    if (height <= 4) return whole();
    e.if_(e.gt(rows, e.i(end - 4)), whole, [&] { cover(first, height - 4); });
  };
  cover(0, std::min(tall, L));
}

Fn HiddenTiles::down(LaneTile t, const ColumnRun& r, int64_t ldb) const {
  std::vector<Ty> params(5, Ty::Ptr);
  params.push_back(Ty::I64);
  std::string name = tile_name("down", t, r.columns(e));
  return e.define(name, params, [&](const Vs& a) {
    std::vector<Prefetch> ahead = {{a[3], a[5]}};
    if (gated) ahead.push_back({a[4], a[5]});
    Vs c = tile_product(e, t, zero_tile(e, t), {{a[1], dim, 1}}, a[0], ldb,
                        e.i(s.dim), mask(r), ahead);
    store_tile(e, t, c, a[2], wide);
  });
}

Fn HiddenTiles::activations(const ColumnRun& r, int64_t features) const {
  std::vector<Ty> params(9, Ty::Ptr);
  params[7] = Ty::I64;
  std::string name = "activations" + std::to_string(r.vectors) + "_" +
                     std::to_string(features);
  return e.define(name, params, [&](const Vs& a) {
    const int64_t to_gate = s.hidden * panel;
    auto flip = [&](V from) {
      V to = e.local(4 * L * L);
      Vs rows;
      for (int i = 0; i < L; ++i)
        rows.push_back(i < features ? e.vload(DType::F32, e.at(from, i * panel))
                                    : e.zero(Ty::F32, 0));
      rows = e.transpose(rows);
      for (int i = 0; i < L; ++i)
        e.vstore_aligned(DType::F32, rows[i], e.at(to, i * L));
      return to;
    };
    V up = flip(a[0]), gate = gated ? flip(e.at(a[0], to_gate)) : nullptr;
    e.loop(e.i(0), a[7], 1, [&](V slot) {
      // H of the next vector, and of these features for other slots
      for (int i = 0; i < (gated ? 2 : 1); ++i) {
        V line = e.add(e.mul(slot, panel), i * to_gate);
        e.prefetch(e.at(e.at(a[0], line), L * panel));
        e.prefetch(e.at(a[8], line), 2);
      }
      V row = e.mul(slot, L);
      auto load = [&](V base) {
        return e.vload_aligned(DType::F32, e.at(base, row));
      };
      auto store = [&](V x, V base) {
        e.vstore_aligned(DType::F32, x, e.at(base, row));
      };
      V da = e.vload(DType::F32, e.at(a[1], e.mul(slot, wide)));
      V w = e.splat(e.load(DType::F32, e.at(a[2], slot)));
      ActivationGrad f = activate_grad(e, s.activation,
                                       gated ? load(gate) : nullptr, load(up));
      store(e.fma(da, f.value, load(a[3])), a[3]);
      // not read again in this launch: past the caches
      e.vstore_stream(DType::F32, e.mul(f.value, w),
                      e.at(a[6], e.mul(slot, r.width(e))));
      da = e.mul(da, w);
      store(e.mul(da, f.by_up), a[4]);
      if (gated) store(e.mul(da, f.by_gate), a[5]);
    });
  });
}

Fn HiddenTiles::back(LaneTile t, const ColumnRun& r, int64_t ldb,
                     int64_t rest) const {
  const std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::Ptr,
                                  Ty::Ptr, Ty::I64, Ty::I64, Ty::I64, Ty::I64,
                                  Ty::I1,  Ty::Ptr, Ty::Ptr, Ty::I64};
  std::string name =
      tile_name("back", t, r.columns(e)) + "_" + std::to_string(rest);
  return e.define(name, params, [&](const Vs& a) {
    V last = mask(r), stride = a[13];
    Vs c = load_tile(e, t, a[4], dim, last);
    for (V& x : c) x = e.select(a[10], e.zero(Ty::F32, 0), x);
    const size_t sums = c.size();
    auto product = [&](V dh, V w, V next) {
      auto steps = [&](const Vs& all, int64_t n) {
        return tile_product(e, t, Vs(all.begin(), all.begin() + sums),
                            {{all[sums], L, 1}}, all[sums + 1], ldb, e.i(n),
                            last, {{all[sums + 2], stride}});
      };
      c.insert(c.end(), {dh, w, next});
      c = e.loop(e.i(0), a[8], L, c, [&](V, Vs all) {
        Vs x = steps(all, L);
        x.push_back(e.at(all[sums], a[7]));
        x.push_back(e.at(all[sums + 1], L * ldb));
        x.push_back(e.at(all[sums + 2], e.mul(stride, L / 2)));
        return x;
      });
      if (rest) c = steps(c, rest);
      c.resize(sums);
    };
    product(a[0], a[1], a[11]);
    if (gated) product(a[2], a[3], a[12]);
    auto row = [&](int i) {
      V to = e.at(a[5], e.mul(a[6], i));
      for (int j = 0; j < t.cols; ++j)
        e.vstore(DType::F32, c[i * t.cols + j], e.at(to, j * L),
                 j == t.cols - 1 ? last : nullptr);
    };
    auto all = [&] {
      for (int i = 0; i < t.rows; ++i) row(i);
    };
    auto some = [&] {
      for (int i = 0; i < t.rows; ++i)
        e.if_(e.lt(e.i(i), a[9]), [&] { row(i); });
    };
    e.if_(e.ge(a[9], e.i(t.rows)), all, some);
  });
}

Fn HiddenTiles::pack(const ColumnRun& r, int64_t rows, int64_t ld) const {
  std::string name = "pack" + std::to_string(r.columns(e)) + "_" +
                     std::to_string(rows) + "_" + std::to_string(ld);
  return e.define(name, {Ty::Ptr, Ty::Ptr}, [&](const Vs& a) {
    V last = mask(r);
    e.loop(e.i(0), e.i(rows), 1, [&](V k) {
      V from = e.at(a[0], e.mul(k, ld)), to = e.at(a[1], e.mul(k, r.width(e)));
      for (int j = 0; j < r.vectors; ++j)
        e.vstore(DType::F32,
                 e.vload(DType::F32, e.at(from, j * L),
                         j == r.vectors - 1 ? last : nullptr),
                 e.at(to, j * L));
    });
  });
}

}  // namespace moec
