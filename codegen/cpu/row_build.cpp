#include "codegen/cpu/row_build.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "codegen/cpu/scalar_emit.h"
#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

bool over_last_axis(Op op) {
  switch (op) {
    case Op::ArgMax:
    case Op::LogSumExp:
    case Op::Softmax:
    case Op::SoftmaxGrad:
    case Op::LayerNorm:
    case Op::LayerNormGrad:
    case Op::RmsNorm:
    case Op::RmsNormGrad:
    case Op::CrossEntropy:
    case Op::CrossEntropyGrad: return true;
    default: return false;
  }
}

bool is_reduction(Op op) {
  return op == Op::Sum || op == Op::Mean || op == Op::ReduceMax ||
         op == Op::ReduceMin;
}

// The value that has the shape of what the op works on.
Value main_operand(const Node& n) { return n.operand(0); }

i64 positive(i64 axis, i64 rank) { return axis < 0 ? axis + rank : axis; }

bool has_axis_attr(Op op) {
  return op == Op::ArgMax || op == Op::LogSumExp || op == Op::Softmax ||
         op == Op::SoftmaxGrad;
}

// The axis that a row op reduces, or -1 if it is not a row op.
i64 row_axis(const Node& n) {
  i64 rank = n.num_operands() ? n.operand(0).type().rank() : 0;
  if (has_axis_attr(n.op())) return positive(n.i("axis"), rank);
  if (over_last_axis(n.op())) return rank - 1;
  if (is_reduction(n.op()) && n.ints("axes").size() == 1)
    return positive(n.ints("axes")[0], rank);
  return -1;
}

bool reads_argument(Op op) {
  return op == Op::Gather || op == Op::Embedding || op == Op::TakeAlong ||
         op == Op::DynamicSlice;
}

Reduction reduction_of(Op op) {
  return op == Op::ReduceMax   ? Reduction::Max
         : op == Op::ReduceMin ? Reduction::Min
                               : Reduction::Sum;
}

}  // namespace

RowBuilder::RowBuilder(const Node& n) : node_(n), body_(n.body()) {
  choose_space();
}

bool RowBuilder::can_hold(const Node& n) {
  if (n.op() == Op::Fusion) {
    for (Node* b : *n.body())
      if (b->op() != Op::Arg && b->op() != Op::Return && !can_hold(*b))
        return false;
    return true;
  }
  if (is_scalar_op(n.op()) || over_last_axis(n.op()) || is_reduction(n.op()) ||
      reads_argument(n.op()))
    return true;
  switch (n.op()) {
    case Op::Constant:
    case Op::Iota:
    case Op::Broadcast:
    case Op::Reshape:
    case Op::Transpose:
    case Op::Slice:
    case Op::StopGradient:
    case Op::OneHot:
    case Op::CausalMask:
    case Op::RandomUniform:
    case Op::RandomNormal:
    case Op::Dropout: return true;
    default: return false;
  }
}

bool RowBuilder::is_leaf(Value v) const {
  return body_ ? v.node->op() == Op::Arg : v.node != &node_;
}

void RowBuilder::choose_space() {
  Dims best;
  i64 size = -1, axis = -1;
  auto offer = [&](const Type& t) {
    i64 n = t.numel();
    if (n < size || (n == size && t.rank() <= i64(best.size()))) return;
    size = n;
    best = t.dims;
  };
  auto visit = [&](const Node& n) {
    if (n.op() == Op::Arg || n.op() == Op::Return) return;
    // A norm's gradients of gain and bias are smaller than its main operand.
    for (const Type& t : n.types()) offer(t);
    if (over_last_axis(n.op()) || is_reduction(n.op()))
      offer(main_operand(n).type());
  };
  if (body_) {
    for (Node* n : *body_) visit(*n);
  } else {
    visit(node_);
  }
  shape_ = best;
  auto find_axis = [&](const Node& n) {
    if (axis < 0 && row_axis(n) >= 0 && main_operand(n).type().dims == shape_ &&
        (!is_reduction(n.op()) || row_axis(n) == i64(shape_.size()) - 1))
      axis = row_axis(n);
  };
  if (body_) {
    for (Node* n : *body_) find_axis(*n);
  } else {
    find_axis(node_);
  }
  i64 rank = i64(shape_.size());
  if (axis < 0) axis = rank - 1;
  place_.resize(rank);
  for (i64 i = 0; i < rank; ++i) {
    if (i == axis) continue;
    place_[i] = int(space_.size());
    space_.push_back(shape_[i]);
  }
  if (rank) place_[axis] = int(space_.size());
  space_.push_back(rank ? shape_[axis] : 1);
}

// ---- views -----------------------------------------------------------------

RowBuilder::View RowBuilder::identity() const {
  View v;
  for (int p : place_) v.push_back({p, 0, 1});
  return v;
}

RowBuilder::View RowBuilder::aligned(const Type& of, const Type& result,
                                     const View& v) const {
  View out;
  i64 shift = result.rank() - of.rank();
  for (i64 i = 0; i < of.rank(); ++i) {
    bool repeats = of.dims[i] == 1 && result.dims[i + shift] != 1;
    out.push_back(repeats ? Axis{} : v[i + shift]);
  }
  return out;
}

RowBuilder::View RowBuilder::dropped(View v, i64 axis) const {
  v.erase(v.begin() + axis);
  return v;
}

// The view of `from` when its reshape `to` has view `v`; only axes of size 1
// differ.
RowBuilder::View RowBuilder::unreshaped(const Type& from, const Type& to,
                                        const View& v) const {
  View out;
  i64 j = 0;
  for (i64 d : from.dims) {
    if (d == 1) {
      out.push_back({});
      continue;
    }
    while (j < to.rank() && to.dims[j] == 1) ++j;
    MOEC_CHECK(j < to.rank() && to.dims[j] == d,
               "reshape {} to {} inside a fusion", to_string(from),
               to_string(to));
    out.push_back(v[j++]);
  }
  return out;
}

// Where a value smaller than the space lies in it, from what it is made of.
bool RowBuilder::find_view(Value v, View& out) const {
  if (is_leaf(v)) return false;
  const Type& t = v.type();
  if (t.dims == shape_) {
    out = identity();
    return true;
  }
  const Node& n = *v.node;
  View x;
  if (is_reduction(n.op())) {
    if (!find_view(n.operand(0), x)) {
      if (n.operand(0).type().dims != shape_) return false;
      x = identity();
    }
    const Type& from = n.operand(0).type();
    std::vector<bool> gone(from.dims.size());
    for (i64 a : n.ints("axes")) gone[positive(a, from.rank())] = true;
    out.clear();
    for (size_t i = 0; i < gone.size(); ++i) {
      if (!gone[i]) out.push_back(x[i]);
      if (gone[i] && n.b("keepdims")) out.push_back({});
    }
    return true;
  }
  if (over_last_axis(n.op())) {
    if (main_operand(n).type().dims != shape_) return false;
    x = identity();
    bool per_column =
        (n.op() == Op::LayerNormGrad || n.op() == Op::RmsNormGrad) &&
        v.index > 0;
    if (per_column)
      out = {x.back()};
    else
      out = dropped(x, row_axis(n));
    return true;
  }
  if (n.op() == Op::Reshape) {
    if (!find_view(n.operand(0), x)) return false;
    out = unreshaped(t, n.operand(0).type(), x);
    return true;
  }
  for (Value o : n.operands()) {
    if (!find_view(o, x)) continue;
    const Type& from = o.type();
    i64 shift = t.rank() - from.rank();
    out.assign(size_t(t.rank()), {});
    for (i64 i = 0; i < from.rank(); ++i)
      if (from.dims[i] == t.dims[i + shift]) out[i + shift] = x[i];
    bool all = true;
    for (i64 i = 0; i < t.rank(); ++i)
      all = all && (t.dims[i] == 1 || out[i].dim >= 0);
    if (all) return true;
  }
  return false;
}

// ---- build -----------------------------------------------------------------

Access RowBuilder::access(int buffer, const Type& t, const View& view) const {
  Access a;
  a.buffer = buffer;
  a.dtype = t.dtype;
  a.strides.assign(space_.size(), 0);
  Dims strides = row_major_strides(t.dims);
  for (size_t i = 0; i < view.size(); ++i) {
    a.offset += view[i].offset * strides[i];
    if (view[i].dim >= 0 && t.dims[i] != 1)
      a.strides[view[i].dim] += view[i].stride * strides[i];
  }
  return a;
}

RowProgram RowBuilder::build() {
  program_.dims = space_;
  int operands = node_.num_operands();
  if (body_) {
    auto outputs = body_->outputs();
    for (size_t i = 0; i < outputs.size(); ++i)
      add_output(outputs[i], operands + int(i));
  } else {
    for (int i = 0; i < node_.num_results(); ++i)
      add_output(Value{const_cast<Node*>(&node_), i}, operands + i);
  }
  program_.label = body_ ? node_.s("kind") : std::string(op_name(node_.op()));
  return std::move(program_);
}

void RowBuilder::add_output(Value v, int buffer) {
  // A reshape of the whole result does not move it.
  while (body_ && v.node->op() == Op::Reshape && !is_leaf(v))
    v = v.node->operand(0);
  View view;
  if (!find_view(v, view)) {
    // Made of operands only: one element per row.
    const Dims& d = v.type().dims;
    MOEC_CHECK(!shape_.empty() && d.size() + 1 >= shape_.size() &&
                   std::equal(shape_.begin(), shape_.end() - 1, d.begin()) &&
                   (d.size() < shape_.size() || d.back() == 1),
               "output {} of {} in a space {}", to_string(v.type()),
               op_name(node_.op()), fmt::join(shape_, ","));
    view = identity();
    view.pop_back();
    if (d.size() == shape_.size()) view.push_back({});
  }
  const Node& n = *v.node;
  RowStore s;
  s.to = access(buffer, v.type(), view);
  int columns = int(space_.size()) - 1;
  std::vector<bool> covered(space_.size());
  for (const Axis& a : view)
    if (a.dim >= 0) covered[a.dim] = true;
  bool rows = true;
  for (int k = 0; k < columns; ++k)
    rows = rows && (covered[k] || space_[k] == 1);
  bool per_column = !is_leaf(v) && !rows;
  bool norm_gain = (n.op() == Op::LayerNormGrad || n.op() == Op::RmsNormGrad) &&
                   v.index > 0 && !is_leaf(v);
  if (norm_gain) {
    s.kind = StoreKind::Column;
    s.value = norm_grad(*v.node, v.index, identity());
  } else if (per_column) {
    MOEC_CHECK(is_reduction(n.op()) && covered[columns],
               "output {} of a fusion covers neither rows nor columns",
               op_name(n.op()));
    s.kind = StoreKind::Column;
    s.reduction = reduction_of(n.op());
    const Type& from = n.operand(0).type();
    View x;
    if (!find_view(n.operand(0), x)) x = identity();
    s.value = value(n.operand(0), x);
    if (n.op() == Op::Mean)
      s.scale = double(v.type().numel()) / double(from.numel());
  } else {
    s.value = value(v, view);
    s.kind = covered[columns] ? StoreKind::Full : StoreKind::Row;
    if (!covered[columns] && space_[columns] == 1 && !program_.has_reductions())
      s.kind = StoreKind::Full;
  }
  if (s.kind == StoreKind::Full && space_[columns] == 1)
    s.to.strides[columns] = 1;
  program_.stores.push_back(std::move(s));
}

int RowBuilder::value(Value v, const View& view) {
  auto key = std::make_tuple(v.node, v.index, view);
  auto it = memo_.find(key);
  if (it != memo_.end()) return it->second;
  int e = compute(v, view);
  memo_.emplace(std::move(key), e);
  return e;
}

int RowBuilder::leaf(Value v, const Type& as, const View& view) {
  int buffer = -1;
  if (body_) {
    auto args = body_->args();
    for (size_t i = 0; i < args.size(); ++i)
      if (args[i] == v.node) buffer = int(i);
  } else {
    for (int i = 0; i < node_.num_operands() && buffer < 0; ++i)
      if (node_.operand(i) == v) buffer = i;
  }
  MOEC_CHECK(buffer >= 0, "a value from outside in a fusion");
  Expr e;
  e.dtype = as.dtype;
  e.access = access(buffer, as, view);
  return add(std::move(e));
}

int RowBuilder::compute(Value v, const View& view) {
  const Type& t = v.type();
  if (is_leaf(v)) return leaf(v, t, view);
  Node& n = *v.node;
  auto operand = [&](int i) {
    Value o = n.operand(i);
    return value(o, aligned(o.type(), t, view));
  };
  if (is_scalar_op(n.op())) {
    std::vector<int> in;
    for (int i = 0; i < n.num_operands(); ++i) in.push_back(operand(i));
    std::string attr = n.op() == Op::Compare ? n.s("direction") : "";
    if (n.op() == Op::Cast) return cast(in[0], t.dtype);
    return scalar(n.op(), t.dtype, in, attr);
  }
  if (reads_argument(n.op())) return indexed(n, view);
  if (is_reduction(n.op())) {
    const Type& from = n.operand(0).type();
    i64 axis = row_axis(n);
    MOEC_CHECK(axis >= 0 && from.dims == shape_ &&
                   place_[axis] == int(space_.size()) - 1,
               "{} over other axes inside a fusion", op_name(n.op()));
    View x = view;
    Axis columns{int(space_.size()) - 1, 0, 1};
    if (n.b("keepdims"))
      x[axis] = columns;
    else
      x.insert(x.begin() + axis, columns);
    int s = reduce(reduction_of(n.op()), value(n.operand(0), x));
    if (n.op() != Op::Mean) return s;
    return scalar(Op::Mul, dtype(s),
                  {s, constant(dtype(s), 1.0 / double(from.dims[axis]))});
  }
  switch (n.op()) {
    case Op::Constant: return constant(t.dtype, n.f("value"));
    case Op::StopGradient: return value(n.operand(0), view);
    case Op::Broadcast: return operand(0);
    case Op::Reshape:
      if (is_leaf(n.operand(0)) && t.dtype == n.operand(0).type().dtype)
        return leaf(n.operand(0), t, view);
      return value(n.operand(0), unreshaped(n.operand(0).type(), t, view));
    case Op::Transpose: {
      View x(view.size());
      const auto& perm = n.ints("perm");
      for (size_t i = 0; i < perm.size(); ++i) x[perm[i]] = view[i];
      return value(n.operand(0), x);
    }
    case Op::Slice: {
      View x = view;
      const auto &start = n.ints("start"), &stride = n.ints("stride");
      for (size_t i = 0; i < x.size(); ++i) {
        i64 step = stride.empty() ? 1 : stride[i];
        // An axis that is whole in the slice but of size 1 has no stride.
        x[i].offset = start[i] + step * x[i].offset;
        x[i].stride *= step;
        if (t.dims[i] == 1) x[i] = {-1, start[i], 0};
      }
      return value(n.operand(0), x);
    }
    case Op::Iota: {
      Access a = access(-1, t, view);
      const Axis& axis = view[n.i("axis")];
      std::fill(a.strides.begin(), a.strides.end(), 0);
      a.offset = axis.offset;
      if (axis.dim >= 0) a.strides[axis.dim] = axis.stride;
      return cast(index(a), t.dtype);
    }
    case Op::OneHot: {
      Access a = access(-1, Type{DType::I32, {}}, {});
      a.strides[view.back().dim] = view.back().stride;
      a.offset = view.back().offset;
      View ids(view.begin(), view.end() - 1);
      int id = cast(value(n.operand(0), ids), DType::I32);
      return cast(scalar(Op::Compare, DType::Bool, {index(a), id}, "eq"),
                  t.dtype);
    }
    case Op::CausalMask: {
      // distance = query position - key position
      Access a = access(-1, Type{DType::I32, {}}, {});
      const Axis &q = view[t.rank() - 2], &k = view[t.rank() - 1];
      a.offset = t.dim(-1) - t.dim(-2) + q.offset - k.offset;
      if (q.dim >= 0) a.strides[q.dim] += q.stride;
      if (k.dim >= 0) a.strides[k.dim] -= k.stride;
      int distance = index(a);
      auto is = [&](const char* how, i64 limit) {
        return scalar(Op::Compare, DType::Bool,
                      {distance, constant(DType::I32, double(limit))}, how);
      };
      int ok = is("ge", 0);
      if (n.i("window") > 0)
        ok = scalar(Op::And, DType::Bool, {ok, is("lt", n.i("window"))});
      double inf = std::numeric_limits<double>::infinity();
      return scalar(Op::Select, t.dtype,
                    {ok, value(n.operand(0), view), constant(t.dtype, -inf)});
    }
    case Op::RandomUniform:
    case Op::RandomNormal:
    case Op::Dropout: return random(n, view);
    case Op::CrossEntropy:
    case Op::CrossEntropyGrad: return loss(n, v.index, view);
    case Op::LayerNormGrad:
    case Op::RmsNormGrad: return norm_grad(n, v.index, view);
    default: return norm(n, v.index, view);
  }
}

// ---- expressions -----------------------------------------------------------

int RowBuilder::add(Expr e) {
  std::string key = fmt::format(
      "{} {} {} {} {} {} {} | {} {} {} {} {} {} {}", int(e.kind), int(e.dtype),
      int(e.op), e.attr, int(e.reduction), fmt::join(e.in, ","), e.number,
      e.access.buffer, int(e.access.dtype), e.access.offset,
      fmt::join(e.access.strides, ","), e.access.index, e.access.index_stride,
      e.access.index_limit);
  auto [it, fresh] = numbered_.emplace(std::move(key), 0);
  if (fresh) it->second = program_.add(std::move(e));
  return it->second;
}

int RowBuilder::scalar(Op op, DType t, std::vector<int> in, std::string attr) {
  Expr e;
  e.kind = ExprKind::Scalar;
  e.op = op;
  e.dtype = t;
  e.in = std::move(in);
  e.attr = std::move(attr);
  return add(std::move(e));
}

int RowBuilder::constant(DType t, double v) {
  Expr e;
  e.kind = ExprKind::Constant;
  e.dtype = t;
  e.number = v;
  return add(std::move(e));
}

int RowBuilder::reduce(Reduction r, int x) {
  Expr e;
  e.kind = ExprKind::Reduce;
  e.dtype = dtype(x);
  if (e.dtype == DType::BF16 || e.dtype == DType::F16) e.dtype = DType::F32;
  e.reduction = r;
  e.in = {x};
  return add(std::move(e));
}

int RowBuilder::index(const Access& place) {
  Expr e;
  e.kind = ExprKind::Index;
  e.dtype = DType::I32;
  e.access = place;
  return add(std::move(e));
}

int RowBuilder::cast(int x, DType t) {
  return dtype(x) == t ? x : scalar(Op::Cast, t, {x});
}

DType RowBuilder::wide(Value v) const {
  return v.type().dtype == DType::F64 ? DType::F64 : DType::F32;
}

}  // namespace moec
