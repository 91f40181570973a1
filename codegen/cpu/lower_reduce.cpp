// Sums, means and extremes over any axes: trailing axes as row reductions,
// leading ones as column reductions, both in two steps through the workspace.
#include <algorithm>

#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/row_emitter.h"
#include "ir/op_def.h"

namespace moec {
namespace {

Reduction kind_of(Op op) {
  return op == Op::ReduceMax   ? Reduction::Max
         : op == Op::ReduceMin ? Reduction::Min
                               : Reduction::Sum;
}

Expr load(const Access& a) {
  Expr e;
  e.dtype = a.dtype;
  e.access = a;
  return e;
}

Access buffer(int i, DType t, Dims strides) {
  Access a;
  a.buffer = i;
  a.dtype = t;
  a.strides = std::move(strides);
  return a;
}

}  // namespace

Lowered lower_reduce(const Node& n, const Target& t) {
  const Type& x = n.operand(0).type();
  std::vector<bool> reduced(x.dims.size());
  for (i64 a : n.ints("axes")) reduced[a < 0 ? a + x.rank() : a] = true;
  size_t suffix = x.dims.size();  // first of the trailing reduced axes
  while (suffix > 0 && reduced[suffix - 1]) --suffix;
  bool inner = std::find(reduced.begin(), reduced.begin() + suffix, true) !=
               reduced.begin() + suffix;
  double scale = n.op() == Op::Mean && x.numel()
                     ? double(n.type().numel()) / double(x.numel())
                     : 1;
  Dims out_strides(suffix, 0);
  i64 stride = 1;
  for (size_t k = suffix; k-- > 0;)
    if (!reduced[k]) {
      out_strides[k] = stride;
      stride *= x.dims[k];
    }
  Dims in_strides = row_major_strides(x.dims);
  RowLowering l(n, t);
  Access from = buffer(0, x.dtype, in_strides);
  Access to = buffer(1, n.type().dtype, out_strides);
  Dims dims(x.dims.begin(), x.dims.begin() + suffix);

  if (suffix < x.dims.size() || !inner) {  // row reduction
    RowProgram p;
    p.label = std::string(op_name(n.op()));
    p.dims = dims;
    i64 cols = 1;
    for (size_t k = suffix; k < x.dims.size(); ++k) cols *= x.dims[k];
    p.dims.push_back(cols);
    from.strides = Dims(in_strides.begin(), in_strides.begin() + suffix);
    from.strides.push_back(cols == 1 ? 0 : 1);
    RowStore s;
    s.kind = StoreKind::Row;
    int v = p.add(load(from));
    Expr r;
    r.kind = ExprKind::Reduce;
    r.dtype = register_dtype(x.dtype);
    r.reduction = kind_of(n.op());
    r.in = {v};
    s.value = p.add(r);
    if (inner) {
      i64 rows = 1;
      for (i64 d : dims) rows *= d;
      s.to = l.workspace(r.dtype, rows);
      s.to.strides = row_major_strides(dims);
      from = s.to;
    } else {
      if (scale != 1) {
        Expr c;
        c.kind = ExprKind::Constant;
        c.dtype = r.dtype;
        c.number = scale;
        Expr m;
        m.kind = ExprKind::Scalar;
        m.op = Op::Mul;
        m.dtype = r.dtype;
        m.in = {s.value, p.add(c)};
        s.value = p.add(m);
      }
      s.to = to;
    }
    s.to.strides.push_back(0);
    p.stores.push_back(std::move(s));
    l.add(std::move(p));
    if (!inner) return l.take();
  }
  RowProgram p;
  p.label = std::string(op_name(n.op()));
  p.dims = dims;
  RowStore s;
  s.kind = StoreKind::Column;
  s.reduction = kind_of(n.op());
  s.value = p.add(load(from));
  s.to = to;
  s.scale = scale;
  p.stores.push_back(std::move(s));
  l.add(std::move(p));
  return l.take();
}

}  // namespace moec
