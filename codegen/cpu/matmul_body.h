// What the parts of a matmul kernel's body share. Internal to the matmul
// family.
#pragma once
#include <functional>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/matmul_plan.h"

namespace moec {

inline constexpr int64_t kLine = 64;  // bytes of a line of the cache

// Everything a tile needs; passed on to the tile functions as arguments.
struct MatmulBody {
  Emit& e;
  const MatmulDesc& d;
  const MatmulPlan& p;
  const int L;
  // How tiles read A, in bytes: per step of the reduction and per row.
  int64_t a_step, a_row;
  DType a_dtype;

  MatmulBody(Emit& e, const MatmulDesc& d, const MatmulPlan& p)
      : e(e), d(d), p(p), L(e.lanes()), a_dtype(DType::F32) {
    const int64_t size = dtype_size(d.a.dtype);
    switch (p.a) {
      case MatmulPlan::A::Direct:
        a_step = d.a.col_stride * size * (d.bf16 ? 2 : 1);
        a_row = d.a.row_stride * size;
        a_dtype = d.a.dtype;
        break;
      case MatmulPlan::A::Tiles:
        a_step = 4 * p.heights[0], a_row = p.pairs ? 64 : 4;
        break;
      case MatmulPlan::A::Rows: a_step = 4, a_row = 4 * p.a_pitch; break;
    }
  }

  V element(V base, const MatmulOperand& o, V row, V col) {
    V index = e.add(e.mul(row, o.row_stride), e.mul(col, o.col_stride));
    return e.at(base, index, dtype_size(o.dtype));
  }

  // A vector of an m x n operand; absent columns read 0.
  V load_vector(const MatmulOperand& o, V p, V mask) {
    if (o.col_stride == 0) return e.splat(e.load(o.dtype, p));
    if (o.col_stride == 1) return e.vload(o.dtype, p, mask, L);
    return e.vload_strided(o.dtype, p, e.i(o.col_stride), mask, L);
  }
  void store_vector(const MatmulOperand& o, V v, V p, V mask) {
    if (o.col_stride == 1) return e.vstore(o.dtype, v, p, mask);
    e.vstore_strided(o.dtype, v, p, e.i(o.col_stride), mask);
  }

  // Where a task works: operands of its batch index or expert.
  struct Block {
    V a, b;
    Vs bases;  // outputs and extras
    V row, rows, block_n, k_from;
  };
  // body(number, columns, carried) for the block's panels, every task but the
  // last has full ones only; after those of one width end(columns, carried).
  void for_panels(const Block&,
                  const std::function<Vs(V, int64_t, const Vs&)>& body,
                  const Vs& carried = {},
                  const std::function<void(int64_t, const Vs&)>& end = nullptr);
  // The sums of a panel between blocks of k.
  V partial(const Block&, V panel);
  V packed_b(V panel, V k0);

  Fn tile(int height, int vectors, int64_t b_stride, int64_t cols);
  // Whether every k block has an even number of steps.
  bool even_steps() const {
    const int64_t elements = d.bf16 ? 4 : 2;
    return d.group != MatmulGroup::Reduction && d.k % elements == 0 &&
           p.block_k % elements == 0;
  }
  Vs reduce(V a, V a_row, V b, V kk, int height, int vectors, int64_t b_stride,
            const std::function<void(V row)>& fetch, V ahead);
  // Outputs and extras, all as `bases` holds them.
  const MatmulOperand& beside(size_t i) const {
    const size_t n = d.outputs.size();
    return i < n ? d.outputs[i] : d.extras[i - n];
  }
  // `bases` moved on to an element.
  template <class Row>
  Vs moved(Vs bases, Row row) {
    for (size_t i = 0; i < bases.size(); ++i)
      bases[i] = e.at(bases[i], mul(row, beside(i).row_stride),
                      dtype_size(beside(i).dtype));
    return bases;
  }
  Vs moved(Vs bases, V row, V col) {
    for (size_t i = 0; i < bases.size(); ++i)
      bases[i] = element(bases[i], beside(i), row, col);
    return bases;
  }
  V mul(V x, int64_t by) { return e.mul(x, by); }
  int64_t mul(int64_t x, int64_t by) { return x * by; }
  // Asks for a row's lines of outputs and extras; `at`: where the tile begins.
  void fetch_row(const Vs& at, V row, int vectors);
  void finish_row(const Vs& acc, const Vs& masks, const Vs& at);
  // Sums of one k block. Bit 0 of `flags`: slot(i) has vector i of those before
  // it; bit 1: it is the last one, so finish(all), else they go to the slots.
  void pass_on(Vs sums, V flags, const std::function<V(int i)>& slot,
               const std::function<void(const Vs&)>& finish);
  void rows_of_block(const Vs& bases, V a, V b, V kk, V partial, V flags, V row,
                     V rows, V col, int64_t cols, int64_t b_stride);
  void vector_block(const Block&, V k0, V kk, V flags);

  // A tile of sums that came from tile registers and are to be passed on: rows
  // `from` to `end` belong at row, col of the product. `earlier` has those of
  // the k blocks before if flags has bit 0, and gets them without bit 1.
  struct Pending {
    V sums, earlier, flags, from, end, row, col;
  };
  static Vs pending_args(const Pending&);
  static Pending pending_from(const V*);
  void pair_row(const Pending&, V r, const Vs& bases, int64_t cols);
  Fn pair_finish(int64_t cols);
  Fn pair_tile(int64_t cols);
  void pair_block(const Block&, V k0, V kk, V flags);

  void block(V batch, V group, V row, V rows, V block_n, V k_from, V k_count);
  void run();
};

}  // namespace moec
