// Loops of a row program: task > rows > phases > columns.
#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/row_emitter.h"
#include "codegen/cpu/scalar_emit.h"
#include "support/error.h"

namespace moec {
namespace {

// A value dearer than this to compute again goes to a row buffer.
constexpr double kDear = 10;

// What each loop over the columns has to do.
struct Phases {
  std::vector<std::vector<int>> reduces, keeps, stores;
  std::vector<int> slot;  // per expression: row buffer or -1
  std::vector<i64> slot_offset;
  i64 scratch_bytes = 0;
  int count() const { return int(reduces.size()); }
};

class PhaseBuilder {
 public:
  explicit PhaseBuilder(const RowProgram& p) : p_(p) {
    int last = 0;
    for (const Expr& e : p.exprs)
      if (e.kind == ExprKind::Reduce) last = std::max(last, e.phase - 1);
    for (const RowStore& s : p.stores)
      if (s.kind != StoreKind::Row)
        last = std::max(last, p.exprs[s.value].phase);
    out_.reduces.resize(last + 1);
    out_.keeps.resize(last + 1);
    out_.stores.resize(last + 1);
    out_.slot.assign(p.exprs.size(), -1);
  }

  Phases build() {
    int n = int(p_.exprs.size());
    for (int i = 0; i < n; ++i)
      if (p_.exprs[i].kind == ExprKind::Reduce)
        out_.reduces[p_.exprs[i].phase - 1].push_back(i);
    // Every full store waits for the last loop, so that a result may share
    // memory with an operand.
    for (int i = 0; i < int(p_.stores.size()); ++i)
      if (p_.stores[i].kind != StoreKind::Row) out_.stores.back().push_back(i);
    for (int f = out_.count() - 1; f >= 0; --f) {
      seen_.assign(n, false);
      for (int i : out_.reduces[f]) visit(p_.exprs[i].in[0], f);
      for (int i : out_.stores[f]) visit(p_.stores[i].value, f);
      for (int i : out_.keeps[f]) visit(i, f);
    }
    return std::move(out_);
  }

 private:
  void visit(int i, int f) {
    const Expr& e = p_.exprs[i];
    if (!e.full || seen_[i]) return;
    seen_[i] = true;
    if (e.phase < f && e.cost >= kDear && e.kind != ExprKind::Load) {
      if (out_.slot[i] < 0) {
        out_.slot[i] = int(out_.slot_offset.size());
        out_.slot_offset.push_back(out_.scratch_bytes);
        i64 bytes = p_.cols() * dtype_size(register_dtype(e.dtype));
        out_.scratch_bytes += (bytes + 63) / 64 * 64;
        out_.keeps[e.phase].push_back(i);
      }
      return;
    }
    for (int k : e.in) visit(k, f);
    if (e.access.index >= 0) visit(e.access.index, f);
  }

  const RowProgram& p_;
  Phases out_;
  std::vector<bool> seen_;
};

class RowKernel {
 public:
  RowKernel(Emit& e, const RowProgram& p, const RowPlan& plan,
            const Phases& phases)
      : e_(e), p_(p), plan_(plan), phases_(phases), values_(e, p) {}

  void run() {
    V row_block = e_.task();
    column_block_ = e_.i(0);
    if (plan_.col_blocks > 1) {
      column_block_ = e_.urem(row_block, e_.i(plan_.col_blocks));
      row_block = e_.udiv(row_block, e_.i(plan_.col_blocks));
      first_ = e_.mul(column_block_, plan_.cols_per_task);
      limit_ = e_.min(e_.add(first_, plan_.cols_per_task), e_.i(p_.cols()));
    }
    row_block_ = row_block;
    kept_.assign(p_.exprs.size(), nullptr);
    for (size_t i = 0; i < kept_.size(); ++i)
      if (phases_.slot[i] >= 0)
        kept_[i] = e_.at(e_.scratch(), phases_.slot_offset[phases_.slot[i]], 1);
    values_.set_kept(&kept_);
    values_.begin_task();
    clear_columns();
    i64 rows = p_.rows();
    if (rows == 1) return row(e_.i(0));
    V r0 = e_.mul(row_block, plan_.rows_per_task);
    V r1 = e_.min(e_.add(r0, plan_.rows_per_task), e_.i(rows));
    e_.loop(r0, r1, 1, [&](V r) { row(r); });
  }

 private:
  void row(V r) {
    Dims outer(p_.dims.begin(), p_.dims.end() - 1);
    values_.begin_row(RowEvaluator::coordinates(e_, outer, r));
    for (int f = 0; f < phases_.count(); ++f) {
      values_.prepare(f);
      if (!phases_.reduces[f].empty() || !phases_.keeps[f].empty() ||
          !phases_.stores[f].empty())
        columns(f);
    }
    values_.prepare(phases_.count());
    for (const RowStore& s : p_.stores) {
      if (s.kind != StoreKind::Row) continue;
      V p = values_.address(s.to, e_.i(0));
      if (s.block_stride)
        p = e_.at(p, e_.mul(column_block_, s.block_stride),
                  dtype_size(s.to.dtype));
      e_.store(s.to.dtype, values_.row(s.value), p);
    }
  }

  void columns(int f) {
    const int w = values_.width(), u = values_.unroll();
    const auto& reduces = phases_.reduces[f];
    Vs acc;
    for (int i : reduces) {
      const Expr& x = p_.exprs[i];
      V id =
          e_.splat(emit_identity(e_, x.reduction, register_dtype(x.dtype)), w);
      for (int k = 0; k < u; ++k) acc.push_back(id);
    }
    auto step = [&](int count) {
      return [this, f, w, u, count](V c, Vs a) {
        for (int k = 0; k < count; ++k)
          vector(f, e_.add(c, k * w), nullptr, count == u ? k : -1, k, a);
        return a;
      };
    };
    V mask = nullptr, tail_at = nullptr;
    if (plan_.col_blocks == 1) {
      i64 cols = p_.cols(), main = cols / (u * w) * (u * w), end = cols / w * w;
      if (main == u * w)
        acc = step(u)(e_.i(0), acc);
      else if (main)
        acc = e_.loop(e_.i(0), e_.i(main), u * w, acc, step(u));
      if (u > 1 && end == main + w)
        acc = step(1)(e_.i(main), acc);
      else if (u > 1 && end > main)
        acc = e_.loop(e_.i(main), e_.i(end), w, acc, step(1));
      if (end < cols) {
        tail_at = e_.i(end);
        mask = e_.mask(e_.i(cols - end), w);
      }
    } else {
      V n = e_.sub(limit_, first_);
      V main = e_.add(first_, e_.and_(n, e_.i(-i64(u) * w)));
      V end = e_.add(first_, e_.and_(n, e_.i(-i64(w))));
      acc = e_.loop(first_, main, u * w, acc, step(u));
      if (u > 1) acc = e_.loop(main, end, w, acc, step(1));
      if (p_.cols() % w) {
        tail_at = end;
        mask = e_.mask(e_.sub(limit_, end), w);
      }
    }
    if (tail_at) vector(f, tail_at, mask, -1, u - 1, acc);
    for (size_t j = 0; j < reduces.size(); ++j) {
      const Expr& x = p_.exprs[reduces[j]];
      DType t = register_dtype(x.dtype);
      V* a = &acc[j * u];
      for (int half = u / 2; half > 0; half /= 2)
        for (int k = 0; k < half; ++k)
          a[k] = emit_combine(e_, x.reduction, t, a[k], a[k + half]);
      values_.set_row_value(reduces[j],
                            emit_horizontal(e_, x.reduction, t, a[0]));
    }
  }

  // One vector of columns: all values first, then all stores.
  void vector(int f, V c, V mask, int group, int chain, Vs& acc) {
    const int u = values_.unroll();
    values_.begin_vector(f, c, mask, group);
    for (size_t j = 0; j < phases_.reduces[f].size(); ++j) {
      const Expr& x = p_.exprs[phases_.reduces[f][j]];
      V& a = acc[j * u + chain];
      V next = emit_combine(e_, x.reduction, register_dtype(x.dtype), a,
                            values_.vector(x.in[0]));
      a = mask ? e_.select(mask, next, a) : next;
    }
    for (int i : phases_.keeps[f]) {
      DType t = register_dtype(p_.exprs[i].dtype);
      e_.vstore(t, values_.vector(i), e_.at(kept_[i], c, dtype_size(t)), mask);
    }
    Vs out;
    for (int i : phases_.stores[f])
      out.push_back(values_.vector(p_.stores[i].value));
    for (size_t j = 0; j < out.size(); ++j) {
      const RowStore& s = p_.stores[phases_.stores[f][j]];
      if (s.kind == StoreKind::Full) {
        values_.store(s.to, out[j]);
      } else {
        V p = column_address(s, c);
        V sum = emit_combine(e_, s.reduction, s.to.dtype,
                             e_.vload(s.to.dtype, p, mask, values_.width()),
                             out[j]);
        e_.vstore(s.to.dtype, sum, p, mask);
      }
    }
  }

  V column_address(const RowStore& s, V c) {
    V place = e_.add(e_.mul(row_block_, s.block_stride), s.to.offset);
    return e_.at(e_.buffer(s.to.buffer), e_.add(place, c),
                 dtype_size(s.to.dtype));
  }

  void clear_columns() {
    const int w = values_.width();
    for (const RowStore& s : p_.stores) {
      if (s.kind != StoreKind::Column) continue;
      V id = e_.splat(emit_identity(e_, s.reduction, s.to.dtype), w);
      i64 end = p_.cols() / w * w;
      e_.loop(e_.i(0), e_.i(end), w,
              [&](V c) { e_.vstore(s.to.dtype, id, column_address(s, c)); });
      if (end < p_.cols())
        e_.vstore(s.to.dtype, id, column_address(s, e_.i(end)),
                  e_.mask(e_.i(p_.cols() - end), w));
    }
  }

  Emit& e_;
  const RowProgram& p_;
  const RowPlan& plan_;
  const Phases& phases_;
  RowEvaluator values_;
  V row_block_ = nullptr, column_block_ = nullptr;
  V first_ = nullptr, limit_ = nullptr;  // columns of this task
  std::vector<V> kept_;
};

}  // namespace

KernelSpec row_kernel(RowProgram p, const Target&, const RowPlan& plan) {
  p.analyse();
  Phases phases = PhaseBuilder(p).build();
  KernelSpec k;
  k.key = fmt::format("{}\nplan {} {} {} {}", p.key(), plan.rows_per_task,
                      plan.row_blocks, plan.cols_per_task, plan.col_blocks);
  k.tasks = plan.row_blocks * plan.col_blocks;
  k.scratch_bytes = phases.scratch_bytes;
  k.bytes = p.bytes();
  if (p.rows() * p.cols() == 0) k.tasks = 0;
  k.emit = [p = std::move(p), plan, phases = std::move(phases)](Emit& e) {
    RowKernel(e, p, plan, phases).run();
  };
  return k;
}

}  // namespace moec
