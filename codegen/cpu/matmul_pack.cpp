// Packing of B panels: [kk][panel] f32, from any strides and dtype.
#include "codegen/cpu/emit.h"
#include "codegen/cpu/matmul_plan.h"

namespace moec {

namespace {

// Rows of B are contiguous: copy `cols` columns of each.
void pack_rows(Emit& e, const MatmulDesc& d, const MatmulPlan& p, int64_t cols,
               V src, V dst, V kk) {
  const int L = e.lanes();
  const int64_t size = dtype_size(d.b.dtype);
  Vs masks;
  for (int64_t c = 0; c < cols; c += L)
    masks.push_back(c + L <= cols ? nullptr : e.mask(e.i(cols - c)));
  e.loop(e.i(0), kk, 1, [&](V k) {
    V s = e.at(src, e.mul(k, d.b.row_stride), size);
    V t = e.at(dst, e.mul(k, p.panel));
    for (size_t g = 0; g < masks.size(); ++g)
      e.vstore_aligned(
          DType::F32,
          e.vload(d.b.dtype, e.at(s, int64_t(g) * L, size), masks[g], L),
          e.at(t, int64_t(g) * L));
  });
}

// Columns of B are contiguous: transpose lanes x lanes blocks in registers.
// The last block overlaps the one before it, so nothing needs a mask.
void pack_columns(Emit& e, const MatmulDesc& d, const MatmulPlan& p,
                  int64_t cols, V src, V dst, V kk) {
  const int L = e.lanes();
  const int64_t size = dtype_size(d.b.dtype);
  V last = e.sub(kk, e.i(L));
  e.loop(e.i(0), kk, L, [&](V block) {
    V k = e.min(block, last);
    V s = e.at(src, k, size);
    V t = e.at(dst, e.mul(k, p.panel));
    for (int64_t g = 0; g < cols; g += L) {
      Vs rows;
      for (int64_t c = g; c < g + L; ++c)
        rows.push_back(
            c < cols ? e.vload(d.b.dtype, e.at(s, c * d.b.col_stride, size))
                     : e.zero(Ty::F32, L));
      rows = e.transpose(rows);
      for (int r = 0; r < L; ++r)
        e.vstore_aligned(DType::F32, rows[r], e.at(t, r * p.panel + g));
    }
  });
}

// Anything else: short reductions and doubly strided operands.
void pack_elements(Emit& e, const MatmulDesc& d, const MatmulPlan& p,
                   int64_t cols, V src, V dst, V kk) {
  const int64_t size = dtype_size(d.b.dtype);
  e.loop(e.i(0), kk, 1, [&](V k) {
    V s = e.at(src, e.mul(k, d.b.row_stride), size);
    V t = e.at(dst, e.mul(k, p.panel));
    e.loop(e.i(0), e.i(cols), 1, [&](V c) {
      e.store(DType::F32,
              e.load(d.b.dtype, e.at(s, e.mul(c, d.b.col_stride), size)),
              e.at(t, c));
    });
  });
}

}  // namespace

Fn define_pack(Emit& e, const MatmulDesc& d, const MatmulPlan& p,
               int64_t cols) {
  return e.define("pack" + std::to_string(cols), {Ty::Ptr, Ty::Ptr, Ty::I64},
                  [&](const Vs& a) {
                    // the shortest k block must hold one transposed block
                    const int64_t shortest = d.group == MatmulGroup::Reduction
                                                 ? 0
                                             : d.k % p.block_k ? d.k % p.block_k
                                                               : p.block_k;
                    auto* pack = d.b.col_stride == 1 ? pack_rows
                                 : d.b.row_stride == 1 && shortest >= e.lanes()
                                     ? pack_columns
                                     : pack_elements;
                    pack(e, d, p, cols, a[0], a[1], a[2]);
                  });
}

}  // namespace moec
