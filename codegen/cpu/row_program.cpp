// Structure of row programs: levels, phases, collapsing, task sizes, keys.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "codegen/cpu/rows.h"
#include "codegen/cpu/scalar_emit.h"
#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

// Philox: ten rounds of two wide products, for four vectors.
constexpr double kRandomCost = 40;

void for_each_access(RowProgram& p, auto&& f) {
  for (Expr& e : p.exprs)
    if (!e.access.strides.empty() || e.kind == ExprKind::Load) f(e.access);
  for (RowStore& s : p.stores) f(s.to);
}

bool mergeable(RowProgram& p, size_t k) {
  bool ok = true;
  for_each_access(p, [&](Access& a) {
    ok = ok && a.strides[k] == a.strides[k + 1] * p.dims[k + 1];
  });
  return ok;
}

void drop(RowProgram& p, size_t k) {
  p.dims.erase(p.dims.begin() + k);
  for_each_access(p,
                  [&](Access& a) { a.strides.erase(a.strides.begin() + k); });
}

}  // namespace

i64 RowProgram::rows() const {
  i64 n = 1;
  for (size_t k = 0; k + 1 < dims.size(); ++k) n *= dims[k];
  return n;
}

int RowProgram::add(Expr e) {
  exprs.push_back(std::move(e));
  return int(exprs.size()) - 1;
}

bool RowProgram::has_reductions() const {
  return std::any_of(exprs.begin(), exprs.end(),
                     [](const Expr& e) { return e.kind == ExprKind::Reduce; });
}

bool RowProgram::has_columns() const {
  return std::any_of(stores.begin(), stores.end(), [](const RowStore& s) {
    return s.kind == StoreKind::Column;
  });
}

void RowProgram::analyse() {
  for (Expr& e : exprs) {
    e.full = false;
    e.uniform = true;
    e.phase = 0;
    e.cost = 0;
    auto use = [&](int i) {
      const Expr& x = exprs[i];
      e.full = e.full || x.full;
      e.uniform = e.uniform && x.uniform;
      e.phase = std::max(e.phase, x.phase);
      e.cost += x.cost;
    };
    for (int i : e.in) use(i);
    if (e.access.index >= 0) use(e.access.index);
    if (!e.access.strides.empty()) {
      e.full = e.full || e.access.strides.back() != 0;
      for (i64 s : e.access.strides) e.uniform = e.uniform && s == 0;
    }
    switch (e.kind) {
      case ExprKind::Load: e.cost += 1; break;
      case ExprKind::Random: e.cost += kRandomCost; break;
      case ExprKind::Scalar: e.cost += scalar_cost(e.op); break;
      case ExprKind::Reduce:
        e.phase += 1;
        e.full = false;
        e.cost = 0;
        break;
      default: break;
    }
  }
}

double RowProgram::ns_per_element() const {
  double ops = 0, memory = 0;
  for (const Expr& e : exprs) {
    if (!e.full) continue;
    if (e.kind == ExprKind::Load)
      memory += e.access.strides.back() == 1 && e.access.index < 0 ? 1 : 4;
    if (e.kind == ExprKind::Scalar) ops += scalar_cost(e.op);
    if (e.kind == ExprKind::Random) ops += kRandomCost;
  }
  for (const RowStore& s : stores)
    if (s.kind == StoreKind::Full) memory += s.to.strides.back() == 1 ? 1 : 4;
  return 0.02 + 0.02 * ops + 0.05 * memory;
}

double RowProgram::bytes() const {
  double sum = 0;
  auto count = [&](const Access& a) {
    double n = double(dtype_size(a.dtype));
    for (size_t k = 0; k < dims.size(); ++k)
      if (a.strides[k] || (a.index >= 0 && a.index_stride)) n *= dims[k];
    sum += n;
  };
  for (const Expr& e : exprs)
    if (e.kind == ExprKind::Load) count(e.access);
  for (const RowStore& s : stores) count(s.to);
  return sum;
}

void collapse(RowProgram& p, bool keep_columns) {
  for (size_t k = p.dims.size(); k-- > 0;) {
    bool last = k + 1 == p.dims.size();
    if (p.dims[k] == 1 && p.dims.size() > 1 && !(last && keep_columns))
      drop(p, k);
  }
  for (size_t k = p.dims.size(); k-- > 1;) {
    bool columns = k + 1 == p.dims.size();
    if ((columns && keep_columns) || !mergeable(p, k - 1)) continue;
    p.dims[k] *= p.dims[k - 1];
    drop(p, k - 1);
  }
}

i64 task_elements(double ns, i64 elements) {
  // At least 8 tasks if each takes 4 us or more; none longer than 40 us.
  double wanted = std::clamp(double(elements) * ns / 8, 4e3, 40e3);
  return std::max<i64>(1, i64(wanted / ns));
}

RowPlan plan_rows(const RowProgram& p, bool split_columns) {
  i64 rows = p.rows(), cols = std::max<i64>(1, p.cols());
  i64 per_task = task_elements(p.ns_per_element(), rows * cols);
  RowPlan plan{1, rows, cols, 1};
  constexpr i64 kGrain = 1024;  // a multiple of every unrolled step
  if (split_columns && cols >= 2 * std::max(per_task, kGrain)) {
    i64 blocks = cols / std::max(per_task, kGrain);
    plan.cols_per_task = (cols / blocks + kGrain - 1) / kGrain * kGrain;
    plan.col_blocks = (cols + plan.cols_per_task - 1) / plan.cols_per_task;
  } else {
    i64 want = std::max<i64>(1, per_task / cols);
    i64 blocks = std::max<i64>(1, (rows + want - 1) / want);
    plan.rows_per_task = std::max<i64>(1, (rows + blocks - 1) / blocks);
    plan.row_blocks = (rows + plan.rows_per_task - 1) / plan.rows_per_task;
  }
  return plan;
}

std::string RowProgram::key() const {
  auto access = [](const Access& a) {
    return fmt::format("b{} {} o{} s{} x{},{},{}", a.buffer,
                       dtype_name(a.dtype), a.offset, fmt::join(a.strides, ","),
                       a.index, a.index_stride, a.index_limit);
  };
  std::string s = fmt::format("{} [{}]", label, fmt::join(dims, ","));
  for (const Expr& e : exprs)
    s += fmt::format(
        "\n{} {} {} '{}' {} ({}) {} {}", int(e.kind), dtype_name(e.dtype),
        e.kind == ExprKind::Scalar ? op_name(e.op) : "-", e.attr,
        int(e.reduction), fmt::join(e.in, ","), e.number, access(e.access));
  for (const RowStore& t : stores)
    s += fmt::format("\n> {} v{} {} r{} k{} *{}", int(t.kind), t.value,
                     access(t.to), int(t.reduction), t.block_stride, t.scale);
  return s;
}

}  // namespace moec
