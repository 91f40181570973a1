// Canonical form of a matrix product: what its flags, scale and batch rule
// can say is no node of its own.
#include "ir/match.h"
#include "passes/canonicalize.h"

namespace moec {
namespace {

// `v` is a transpose of the last two axes and nothing else.
bool swaps_last(Value v) {
  if (v.node->op() != Op::Transpose) return false;
  const auto& perm = v.node->ints("perm");
  auto rank = i64(perm.size());
  if (rank < 2 || perm[rank - 1] != rank - 2) return false;
  for (i64 i = 0; i < rank - 2; ++i)
    if (perm[i] != i) return false;
  return true;
}

// The batch dimensions that the product has with these operands.
Dims batch_of(const Type& a, const Type& b) {
  auto batch = [](const Type& t) {
    return Type{t.dtype, Dims(t.dims.begin(), t.dims.end() - 2)};
  };
  return broadcast_dims("matmul", batch(a), batch(b));
}

// A broadcast of batch dimensions that the product makes by itself.
Value without_broadcast(const Node& n, int i) {
  Value v = n.operand(i);
  if (v.node->op() != Op::Broadcast) return {};
  Value small = v.node->operand(0);
  if (small.type().rank() < 2 || small.type().dim(-1) != v.type().dim(-1) ||
      small.type().dim(-2) != v.type().dim(-2))
    return {};
  Dims want(n.type().dims.begin(), n.type().dims.end() - 2);
  if (batch_of(small.type(), n.operand(1 - i).type()) != want) return {};
  return small;
}

}  // namespace

Value canonicalize_matmul(Builder&, Node& n) {
  constexpr std::string_view kFlags[] = {"transpose_a", "transpose_b"};
  for (int i = 0; i < 2; ++i) {
    Value v = n.operand(i);
    if (swaps_last(v)) {
      n.set_attr(kFlags[i], !n.b(kFlags[i]));
      n.set_operand(i, v.node->operand(0));
      return n.result();
    }
    if (Value small = without_broadcast(n, i)) {
      n.set_operand(i, small);
      return n.result();
    }
    double c = 0;
    if (v.node->op() == Op::Mul && v.node->users().size() == 1 &&
        v.node->operand(0).type() == v.type() &&
        m::is_splat(v.node->operand(1), &c)) {
      n.set_attr("scale", n.f("scale") * c);
      n.set_operand(i, v.node->operand(0));
      return n.result();
    }
  }
  return {};
}

}  // namespace moec
