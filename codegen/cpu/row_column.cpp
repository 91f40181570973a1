// Reductions over rows: sums stay in registers while the rows go by.
#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/row_emitter.h"
#include "codegen/cpu/scalar_emit.h"
#include "codegen/cpu/target.h"
#include "support/error.h"

namespace moec {
namespace {

// Dimensions of the rows, split into those that the stores keep and those that
// they reduce.
struct Split {
  Dims kept, reduced;
  std::vector<bool> is_kept;
  i64 kept_rows = 1, reduced_rows = 1;
};

Split split_rows(const RowProgram& p) {
  Split s;
  for (size_t k = 0; k + 1 < p.dims.size(); ++k) {
    bool kept = p.stores[0].to.strides[k] != 0;
    s.is_kept.push_back(kept);
    (kept ? s.kept : s.reduced).push_back(p.dims[k]);
    (kept ? s.kept_rows : s.reduced_rows) *= p.dims[k];
  }
  return s;
}

// Columns of one task: few enough that a task has a good length.
constexpr int kVectors = 4;

class ColumnKernel {
 public:
  ColumnKernel(Emit& e, const RowProgram& p, const Split& s, i64 blocks,
               i64 kept_per_task, i64 col_blocks, i64 cols_per_task)
      : e_(e),
        p_(p),
        s_(s),
        blocks_(blocks),
        kept_per_task_(kept_per_task),
        col_blocks_(col_blocks),
        cols_per_task_(cols_per_task),
        values_(e, p) {}

  // task = (kept rows * blocks + row block) * col_blocks + column block
  void run() {
    V t = e_.task();
    V cb = e_.urem(t, e_.i(col_blocks_));
    t = e_.udiv(t, e_.i(col_blocks_));
    block_ = e_.urem(t, e_.i(blocks_));
    V kept_rows = e_.mul(e_.udiv(t, e_.i(blocks_)), kept_per_task_);
    i64 per = (s_.reduced_rows + blocks_ - 1) / blocks_;
    r0_ = e_.mul(block_, per);
    r1_ = e_.min(e_.add(r0_, per), e_.i(s_.reduced_rows));
    values_.begin_task();
    const int w = values_.width();
    V first = e_.mul(cb, cols_per_task_);
    V limit = e_.min(e_.add(first, cols_per_task_), e_.i(p_.cols()));
    V n = e_.sub(limit, first);
    V main = e_.add(first, e_.and_(n, e_.i(-i64(kVectors) * w)));
    V end = e_.add(first, e_.and_(n, e_.i(-i64(w))));
    auto stripes = [&](V kept_row) {
      kept_ = RowEvaluator::coordinates(e_, s_.kept, kept_row);
      e_.loop(first, main, kVectors * w,
              [&](V c) { stripe(c, kVectors, nullptr); });
      e_.loop(main, end, w, [&](V c) { stripe(c, 1, nullptr); });
      if (p_.cols() % w)
        e_.if_(e_.lt(end, limit),
               [&] { stripe(end, 1, e_.mask(e_.sub(limit, end), w)); });
    };
    if (s_.kept_rows == 1) return stripes(e_.i(0));
    V last = e_.min(e_.add(kept_rows, kept_per_task_), e_.i(s_.kept_rows));
    e_.loop(kept_rows, last, 1, stripes);
  }

 private:
  Vs coordinates(V reduced_row) {
    Vs inner = RowEvaluator::coordinates(e_, s_.reduced, reduced_row), all;
    size_t i = 0, j = 0;
    for (bool kept : s_.is_kept) all.push_back(kept ? kept_[i++] : inner[j++]);
    return all;
  }

  DType sum_type(const RowStore& s) {
    return register_dtype(p_.exprs[s.value].dtype);
  }

  void stripe(V c, int vectors, V mask) {
    const int w = values_.width();
    Vs acc;
    for (const RowStore& s : p_.stores)
      for (int k = 0; k < vectors; ++k)
        acc.push_back(e_.splat(emit_identity(e_, s.reduction, sum_type(s)), w));
    acc = e_.loop(r0_, r1_, 1, acc, [&](V r, Vs a) {
      values_.begin_row(coordinates(r));
      values_.prepare(0);
      for (int k = 0; k < vectors; ++k) {
        values_.begin_vector(0, e_.add(c, k * w), mask, -1);
        for (size_t j = 0; j < p_.stores.size(); ++j) {
          const RowStore& s = p_.stores[j];
          V& x = a[j * vectors + k];
          x = emit_combine(e_, s.reduction, sum_type(s), x,
                           values_.vector(s.value));
        }
      }
      return a;
    });
    values_.begin_row(coordinates(e_.i(0)));
    for (size_t j = 0; j < p_.stores.size(); ++j) {
      const RowStore& s = p_.stores[j];
      for (int k = 0; k < vectors; ++k) {
        V v = acc[j * vectors + k];
        if (s.scale != 1)
          v = e_.mul(v, e_.splat(emit_constant(e_, sum_type(s), s.scale), w));
        V p = values_.address(s.to, e_.add(c, k * w));
        if (s.block_stride)
          p = e_.at(p, e_.mul(block_, s.block_stride), dtype_size(s.to.dtype));
        if (s.to.strides.back() == 1)
          e_.vstore(s.to.dtype, v, p, mask);
        else
          e_.vstore_strided(s.to.dtype, v, p, e_.i(s.to.strides.back()), mask);
      }
    }
  }

  Emit& e_;
  const RowProgram& p_;
  const Split& s_;
  i64 blocks_, kept_per_task_, col_blocks_, cols_per_task_;
  RowEvaluator values_;
  Vs kept_;
  V block_ = nullptr, r0_ = nullptr, r1_ = nullptr;
};

}  // namespace

KernelSpec column_kernel(RowProgram p, const Target&, i64 blocks) {
  p.analyse();
  Split s = split_rows(p);
  i64 rows = std::max<i64>(1, (s.reduced_rows + blocks - 1) / blocks);
  i64 all_cols = std::max<i64>(1, p.cols());
  i64 want = task_elements(p.ns_per_element(), p.rows() * p.cols()) / rows;
  constexpr i64 kGrain = 64;
  i64 cols = std::min((std::max<i64>(1, want) + kGrain - 1) / kGrain * kGrain,
                      all_cols);
  i64 col_blocks = (p.cols() + cols - 1) / cols;
  i64 kept = std::max<i64>(1, want / all_cols);
  i64 kept_blocks = (s.kept_rows + kept - 1) / kept;
  KernelSpec k;
  k.key = fmt::format("{}\ncolumns {} {} {} {}", p.key(), blocks, kept,
                      col_blocks, cols);
  k.tasks = kept_blocks * blocks * col_blocks;
  k.bytes = p.bytes();
  k.emit = [p = std::move(p), s, blocks, kept, col_blocks, cols](Emit& e) {
    ColumnKernel(e, p, s, blocks, kept, col_blocks, cols).run();
  };
  return k;
}

}  // namespace moec
