#include "passes/canonicalize.h"

#include <cmath>

#include "ir/match.h"
#include "ir/op_def.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

bool is_number(Value v, double x) {
  double y = 0;
  return m::is_splat(v, &y) && y == x;
}

bool is_power_of_two(double x) {
  int exponent = 0;
  return x != 0 && std::isfinite(x) &&
         std::abs(std::frexp(x, &exponent)) == 0.5;
}

// Whether the node's result keeps its shape when operand `i` has `dims`.
bool keeps_shape(const Node& n, int i, const Dims& dims) {
  Type all{n.type().dtype, {}};
  for (int k = 0; k < n.num_operands(); ++k) {
    Type t{n.type().dtype, k == i ? dims : n.operand(k).type().dims};
    all.dims = broadcast_dims("elementwise", all, t);
  }
  return all.dims == n.type().dims;
}

// Operands that the op broadcasts by itself need no broadcast, and constants
// are scalars.
bool drop_broadcasts(Builder& b, Node& n) {
  for (int i = 0; i < n.num_operands(); ++i) {
    Value v = n.operand(i);
    double x = 0;
    if (m::is_splat(v, &x)) {
      if (v.node->op() == Op::Constant && v.type().rank() == 0) continue;
      if (!keeps_shape(n, i, {})) continue;
      n.set_operand(i, b.scalar(x, v.type().dtype));
      return true;
    }
    if (v.node->op() != Op::Broadcast) continue;
    Value small = v.node->operand(0);
    if (!keeps_shape(n, i, small.type().dims)) continue;
    n.set_operand(i, small);
    return true;
  }
  return false;
}

// Whether every value of `from` is one of `to`.
bool holds_exactly(DType to, DType from) {
  if (to == from || from == DType::Bool) return true;
  switch (to) {
    case DType::F64: return from != DType::I64;
    case DType::F32: return from == DType::BF16 || from == DType::F16;
    case DType::I64: return from == DType::I32 || from == DType::U32;
    default: return false;
  }
}

// A cast to a smaller float goes before what only moves values, so that less
// is moved; and a rotation between two casts needs neither, since it rounds
// once itself.
Value narrow_before(Builder& b, Node& cast) {
  Node& move = *cast.operand(0).node;
  const DType to = cast.type().dtype, from = cast.operand(0).type().dtype;
  if (!is_float(to) || !is_float(from) || dtype_size(to) >= dtype_size(from) ||
      move.num_operands() == 0 || move.num_uses(0) != 1)
    return {};
  Values in(move.operands().begin(), move.operands().end());
  if (move.op() == Op::Reshape || move.op() == Op::Transpose)
    in[0] = b.cast(in[0], to);
  else if (move.op() == Op::Rope && in[0].node->op() == Op::Cast &&
           in[0].node->operand(0).type().dtype == to)
    in[0] = in[0].node->operand(0);
  else
    return {};
  Node* n = b.node(move.op(), in, move.attr_list());
  take_names(move, *n);
  return n->result();
}

// And a cast to a larger float goes after it.
Value widen_after(Builder& b, Node& move) {
  if (move.op() != Op::Reshape && move.op() != Op::Transpose) return {};
  Node& cast = *move.operand(0).node;
  if (cast.op() != Op::Cast || cast.num_uses(0) != 1) return {};
  const DType to = cast.type().dtype, from = cast.operand(0).type().dtype;
  if (!is_float(to) || !is_float(from) || dtype_size(to) <= dtype_size(from))
    return {};
  Values in(move.operands().begin(), move.operands().end());
  in[0] = cast.operand(0);
  return b.cast(b.node(move.op(), in, move.attr_list())->result(), to);
}

Value cast_rule(Builder& b, Node& n) {
  Value x = n.operand(0);
  if (x.type() == n.type()) return x;
  if (Value v = narrow_before(b, n)) return v;
  if (x.node->op() != Op::Cast) return {};
  Value y = x.node->operand(0);
  if (!holds_exactly(x.type().dtype, y.type().dtype)) return {};
  return b.cast(y, n.type().dtype);
}

// x op c where c does nothing.
Value identity(Node& n) {
  Value x = n.operand(0), c = n.operand(1);
  if (x.type() != n.type()) return {};
  switch (n.op()) {
    case Op::Add:
    case Op::Sub: return is_number(c, 0) ? x : Value();
    case Op::Mul:
    case Op::Div:
    case Op::Pow: return is_number(c, 1) ? x : Value();
    default: return {};
  }
}

Value binary_rule(Builder& b, Node& n) {
  Value x = n.operand(0), y = n.operand(1);
  if (has_trait(n, kCommutative) && m::is_splat(x) && !m::is_splat(y)) {
    n.set_operand(0, y);
    n.set_operand(1, x);
    return n.result();
  }
  if (Value v = identity(n)) return v;
  double c = 0, inner = 0;
  bool constant = m::is_splat(y, &c) && x.type() == n.type();
  if (n.op() == Op::Div && constant && is_float(n.type().dtype) &&
      is_power_of_two(c))
    return b.mul(x, 1 / c);
  if (n.op() == Op::Mul && constant && x.node->op() == Op::Mul &&
      x.node->users().size() == 1 && x.node->operand(0).type() == n.type() &&
      m::is_splat(x.node->operand(1), &inner))
    return b.mul(x.node->operand(0), inner * c);
  // The scale of a matrix product is an attribute of it.
  if ((n.op() == Op::Mul || n.op() == Op::Div) && constant && c != 0 &&
      x.node->op() == Op::Matmul && x.node->users().size() == 1) {
    Node& p = *x.node;
    return b.matmul(p.operand(0), p.operand(1), p.b("transpose_a"),
                    p.b("transpose_b"),
                    n.op() == Op::Mul ? p.f("scale") * c : p.f("scale") / c);
  }
  if (n.op() == Op::Add && y.node->op() == Op::Neg)
    return b.sub(x, y.node->operand(0));
  if (n.op() == Op::Sub && y.node->op() == Op::Neg)
    return b.add(x, y.node->operand(0));
  return {};
}

}  // namespace

Value canonicalize_elementwise(Builder& b, Node& n) {
  if (n.num_operands() > 1 && drop_broadcasts(b, n)) return n.result();
  switch (n.op()) {
    case Op::Cast: return cast_rule(b, n);
    case Op::Neg:
    case Op::Not:
      if (n.operand(0).node->op() == n.op())
        return n.operand(0).node->operand(0);
      return {};
    case Op::Select:
      if (n.operand(1) == n.operand(2) && n.operand(1).type() == n.type())
        return n.operand(1);
      return {};
    default: return n.num_operands() == 2 ? binary_rule(b, n) : Value();
  }
}

bool canonicalize(Graph& g, PassContext&) {
  return rewrite(g, [](Builder& b, Node& n) -> Value {
    if (n.op() == Op::Matmul) return canonicalize_matmul(b, n);
    if (has_trait(n, kElementwise)) return canonicalize_elementwise(b, n);
    if (Value v = canonicalize_shape(b, n)) return v;
    if (Value v = widen_after(b, n)) return v;
    return canonicalize_reduction(b, n);
  });
}

}  // namespace moec
