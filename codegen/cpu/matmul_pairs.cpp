// Tiles of sums in tile registers, the inner part of a matmul kernel on bf16.
#include "codegen/cpu/matmul_body.h"
#include "codegen/cpu/pair_tile.h"

namespace moec {

// tile(A, B, C, k): 32 x 32 sums in tile registers.
Fn MatmulBody::pair_tile(bool accumulate) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define(accumulate ? "pairs_add" : "pairs", params, [&](const Vs& x) {
    const int64_t ld = 4 * p.panel;
    pair_product(e, {x[0], a_row, x[1], ld, x[2], ld}, e.i(kPairStep), x[3],
                 accumulate);
  });
}

// finish(C, first, end, row, col, bases...): stores rows `first` to `end` of a
// tile, the first of them `row` of the product.
Fn MatmulBody::pair_finish(int64_t cols) {
  std::vector<Ty> params = {Ty::Ptr, Ty::I64, Ty::I64, Ty::I64, Ty::I64};
  const size_t fixed = params.size();
  params.resize(fixed + d.outputs.size() + d.extras.size(), Ty::Ptr);
  return e.define("finish" + std::to_string(cols), params, [&](const Vs& x) {
    Vs bases(x.begin() + fixed, x.end());
    const int vectors = int((cols + L - 1) / L);
    Vs masks(vectors, nullptr);
    for (int j = 0; j < vectors; ++j)
      if (cols < (j + 1) * L) masks[j] = e.mask(e.i(cols - j * L));
    e.loop(x[1], x[2], 1, [&](V r) {
      Vs sums;
      for (int j = 0; j < vectors; ++j)
        sums.push_back(e.vload_aligned(
            DType::F32, e.at(e.at(x[0], e.mul(r, p.panel)), j * L)));
      finish_row(sums, masks, moved(bases, e.add(x[3], e.sub(r, x[1])), x[4]));
    });
  });
}

// rows_of_block in tile registers. Where A is read in place its last rows come
// with some before them, so that a tile is whole.
void MatmulBody::pair_rows(const Vs& bases, V a, V b, V steps, V partial,
                           V flags, V row, V rows, V col, int64_t cols) {
  V k = e.and_(e.add(e.mul(steps, 2), kPairStep - 1), e.i(-kPairStep));
  // zeros up to whole tiles along k
  e.loop(e.mul(steps, 2), k, 2, [&](V at) {
    V to = e.at(b, e.mul(at, p.panel / 2));
    for (int j = 0; j < 2; ++j)
      e.store_raw(e.zero(Ty::I32, L), e.at(to, j * L), 4 * L);
  });
  e.loop(e.i(0), rows, kPairStep, [&](V at) {
    V before = e.i(0);
    if (p.a == MatmulPlan::A::Direct)
      before = e.max(e.add(e.add(row, at), kPairStep - d.m), e.i(0));
    V from = e.at(a, e.mul(e.sub(at, before), a_row), 1);
    V c = p.split_k ? e.at(partial, e.mul(at, p.panel)) : partial;
    Vs args{from, b, c, k};
    if (p.split_k)
      e.if_(
          e.ne(e.and_(flags, e.i(1)), e.i(0)),
          [&] { e.call(pair_tile(true), args); },
          [&] { e.call(pair_tile(false), args); });
    else
      e.call(pair_tile(false), args);
    V end = e.add(before, e.min(e.sub(rows, at), e.i(kPairStep)));
    Vs last{c, before, end, e.add(row, at), col};
    last.insert(last.end(), bases.begin(), bases.end());
    e.if_(e.ne(e.and_(flags, e.i(2)), e.i(0)),
          [&] { e.call(pair_finish(cols), last); });
  });
}

}  // namespace moec
