// Fusions and row ops: one launch, or two where partial results of row or
// column blocks are combined in order.
#include <algorithm>

#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/row_build.h"
#include "codegen/cpu/row_emitter.h"
#include "support/error.h"

namespace moec {
namespace {

bool is_column(const RowStore& s) { return s.kind == StoreKind::Column; }

// Row blocks of a reduction over rows.
i64 column_blocks(const RowProgram& p) {
  i64 kept = 1, reduced = 1;
  for (size_t k = 0; k + 1 < p.dims.size(); ++k)
    (p.stores[0].to.strides[k] ? kept : reduced) *= p.dims[k];
  i64 elements = kept * reduced * p.cols();
  i64 tasks =
      elements / std::max<i64>(1, task_elements(p.ns_per_element(), elements));
  // Enough columns make enough tasks without cutting the rows.
  i64 column_tasks = kept * std::max<i64>(1, p.cols() / 64);
  i64 blocks = std::min(tasks / std::max<i64>(1, column_tasks), reduced / 32);
  return std::clamp<i64>(blocks, 1, 64);
}

}  // namespace

void RowLowering::launch(KernelSpec k) {
  LoweredLaunch l;
  l.spec = std::move(k);
  for (int i = 0; i < num_buffers_; ++i) l.buffers.push_back(i);
  out_.launches.push_back(std::move(l));
}

Access RowLowering::workspace(DType t, i64 elements) {
  Access a;
  a.buffer = workspace_buffer_;
  a.dtype = t;
  a.offset = out_.workspace_bytes / dtype_size(t);
  out_.workspace_bytes += (elements * dtype_size(t) + 63) / 64 * 64;
  num_buffers_ = workspace_buffer_ + 1;
  return a;
}

// Partial results [kept..., blocks, columns] to the store's place.
void RowLowering::finish_columns(const RowProgram& p, const RowStore& s,
                                 const Access& partial, i64 blocks) {
  RowProgram q;
  q.label = p.label + "_sum";
  Expr load;
  load.access = partial;
  load.access.strides.clear();
  load.dtype = partial.dtype;
  RowStore store = s;
  store.to.strides.clear();
  store.value = 0;
  store.block_stride = 0;
  i64 cols = p.cols();
  i64 stride = cols * blocks;
  for (size_t k = p.dims.size() - 1; k-- > 0;) {
    if (!s.to.strides[k]) continue;
    q.dims.insert(q.dims.begin(), p.dims[k]);
    load.access.strides.insert(load.access.strides.begin(), stride);
    store.to.strides.insert(store.to.strides.begin(), s.to.strides[k]);
    stride *= p.dims[k];
  }
  for (auto [d, from, to] :
       {std::tuple<i64, i64, i64>{blocks, cols, 0},
        std::tuple<i64, i64, i64>{cols, 1, s.to.strides.back()}}) {
    q.dims.push_back(d);
    load.access.strides.push_back(from);
    store.to.strides.push_back(to);
  }
  q.add(std::move(load));
  q.stores.push_back(std::move(store));
  launch(column_kernel(std::move(q), target_, 1));
}

void RowLowering::columns(RowProgram p) {
  collapse(p, true);
  p.analyse();
  i64 blocks = column_blocks(p);
  if (blocks == 1) return launch(column_kernel(std::move(p), target_, 1));
  std::vector<RowStore> finals = p.stores;
  std::vector<Access> partials;
  for (RowStore& s : p.stores) {
    i64 kept = 1;
    for (size_t k = 0; k + 1 < p.dims.size(); ++k)
      if (s.to.strides[k]) kept *= p.dims[k];
    DType t = register_dtype(p.exprs[s.value].dtype);
    Access a = workspace(t, kept * blocks * p.cols());
    partials.push_back(a);
    a.strides.assign(p.dims.size(), 0);
    i64 stride = blocks * p.cols();
    for (size_t k = p.dims.size() - 1; k-- > 0;) {
      if (!s.to.strides[k]) continue;
      a.strides[k] = stride;
      stride *= p.dims[k];
    }
    a.strides.back() = 1;
    s.to = a;
    s.block_stride = p.cols();
    s.scale = 1;
  }
  launch(column_kernel(p, target_, blocks));
  for (size_t i = 0; i < finals.size(); ++i)
    finish_columns(p, finals[i], partials[i], blocks);
}

// Few long rows: reductions of column blocks first, then over the blocks.
bool RowLowering::split_rows(const RowProgram& p) {
  if (p.rows() >= 16) return false;
  i64 elements = p.rows() * p.cols();
  i64 per_task = task_elements(p.ns_per_element(), elements);
  if (p.cols() < 2 * per_task) return false;
  std::vector<int> reduced;  // each may be the operand of one reduction
  for (const Expr& e : p.exprs) {
    if (e.kind != ExprKind::Reduce) continue;
    int x = e.in[0];
    if (e.phase != 1 || !p.exprs[x].full ||
        std::find(reduced.begin(), reduced.end(), x) != reduced.end())
      return false;
    reduced.push_back(x);
  }
  for (const RowStore& s : p.stores)
    if (s.kind != StoreKind::Row) return false;
  RowPlan plan = plan_rows(p, true);
  if (plan.col_blocks < 2) return false;

  RowProgram first = p, second = p;
  first.stores.clear();
  first.label += "_blocks";
  second.dims.back() = plan.col_blocks;
  for (size_t i = 0; i < p.exprs.size(); ++i) {
    if (p.exprs[i].kind != ExprKind::Reduce) continue;
    Access a = workspace(p.exprs[i].dtype, p.rows() * plan.col_blocks);
    a.strides.assign(p.dims.size(), 0);
    i64 stride = plan.col_blocks;
    for (size_t k = p.dims.size() - 1; k-- > 0;) {
      a.strides[k] = stride;
      stride *= p.dims[k];
    }
    RowStore s;
    s.kind = StoreKind::Row;
    s.value = int(i);
    s.to = a;
    s.block_stride = 1;
    first.stores.push_back(s);
    Expr load;
    load.dtype = a.dtype;
    load.access = a;
    load.access.strides.back() = 1;
    // Nothing else uses the operand in the second launch.
    second.exprs[p.exprs[i].in[0]] = load;
  }
  launch(row_kernel(std::move(first), target_, plan));
  launch(row_kernel(std::move(second), target_, plan_rows(second, false)));
  return true;
}

void RowLowering::add(RowProgram p) {
  p.analyse();
  bool reduces = p.has_reductions();
  auto& stores = p.stores;
  if (p.has_columns() && !reduces &&
      std::all_of(stores.begin(), stores.end(), is_column))
    return columns(std::move(p));
  collapse(p, reduces || p.has_columns());
  p.analyse();
  if (reduces && !p.has_columns() && split_rows(p)) return;
  RowPlan plan = plan_rows(p, !reduces && !p.has_columns());
  struct Partial {
    RowStore final;
    Access at;
  };
  std::vector<Partial> partials;
  for (RowStore& s : stores) {
    if (!is_column(s)) continue;
    Access a = workspace(register_dtype(p.exprs[s.value].dtype),
                         plan.row_blocks * p.cols());
    partials.push_back({s, a});
    a.strides.assign(p.dims.size(), 0);
    a.strides.back() = 1;
    s.to = a;
    s.block_stride = p.cols();
    s.scale = 1;
  }
  launch(row_kernel(p, target_, plan));
  for (const Partial& x : partials)
    finish_columns(p, x.final, x.at, plan.row_blocks);
}

Lowered lower_rows(const Node& n, const Target& t) {
  RowLowering l(n, t);
  l.add(RowBuilder(n).build());
  return l.take();
}

}  // namespace moec
