// Canonical forms of ops that move or reduce elements.
#include <algorithm>
#include <numeric>

#include "ir/match.h"
#include "passes/canonicalize.h"

namespace moec {
namespace {

// The perm moves nothing but dimensions of size 1.
bool moves_only_units(const Dims& dims, const std::vector<i64>& perm) {
  i64 last = -1;
  for (i64 p : perm) {
    if (dims[p] == 1) continue;
    if (p < last) return false;
    last = p;
  }
  return true;
}

Value transpose_rule(Builder& b, Node& n) {
  Value x = n.operand(0);
  const auto& perm = n.ints("perm");
  if (moves_only_units(x.type().dims, perm)) return b.reshape(x, n.type().dims);
  if (x.node->op() == Op::Transpose) {
    const auto& inner = x.node->ints("perm");
    std::vector<i64> both(perm.size());
    for (size_t i = 0; i < perm.size(); ++i) both[i] = inner[perm[i]];
    return b.transpose(x.node->operand(0), both);
  }
  // (A B)^T = B^T A^T
  auto rank = i64(perm.size());
  if (x.node->op() != Op::Matmul || x.node->users().size() != 1) return {};
  for (i64 i = 0; i < rank - 2; ++i)
    if (perm[i] != i) return {};
  Node& p = *x.node;
  return b.matmul(p.operand(1), p.operand(0), !p.b("transpose_b"),
                  !p.b("transpose_a"), p.f("scale"));
}

Value reshape_rule(Builder& b, Node& n) {
  Value x = n.operand(0);
  if (x.type() == n.type()) return x;
  if (x.node->op() == Op::Reshape)
    return b.reshape(x.node->operand(0), n.type().dims);
  // sum {keepdims} then reshape is sum without, and the other way round.
  Node& r = *x.node;
  if ((r.op() != Op::Sum && r.op() != Op::Mean && r.op() != Op::ReduceMax &&
       r.op() != Op::ReduceMin) ||
      r.users().size() != 1)
    return {};
  AttrList attrs = r.attr_list();
  for (auto& [name, value] : attrs)
    if (name == "keepdims") value = !std::get<bool>(value);
  Dims other;
  const auto& axes = r.ints("axes");
  const Dims& from = r.operand(0).type().dims;
  for (i64 i = 0; i < i64(from.size()); ++i) {
    bool reduced = std::find(axes.begin(), axes.end(), i) != axes.end();
    if (!reduced)
      other.push_back(from[i]);
    else if (!r.b("keepdims"))
      other.push_back(1);
  }
  if (other != n.type().dims) return {};
  return b.op(r.op(), {r.operand(0)}, attrs);
}

Value broadcast_rule(Builder& b, Node& n) {
  Value x = n.operand(0);
  if (x.type() == n.type()) return x;
  if (x.type().numel() == n.type().numel()) return b.reshape(x, n.type().dims);
  if (x.node->op() == Op::Broadcast)
    return b.broadcast(x.node->operand(0), n.type().dims);
  return {};
}

bool is_zero(const std::vector<i64>& v) {
  return std::all_of(v.begin(), v.end(), [](i64 i) { return i == 0; });
}

}  // namespace

Value canonicalize_shape(Builder& b, Node& n) {
  double x = 0;
  bool moves = n.op() == Op::Transpose || n.op() == Op::Reshape ||
               n.op() == Op::Broadcast || n.op() == Op::Slice;
  if (moves && m::is_splat(n.operand(0), &x)) return b.constant(n.type(), x);
  switch (n.op()) {
    case Op::Transpose: return transpose_rule(b, n);
    case Op::Reshape: return reshape_rule(b, n);
    case Op::Broadcast: return broadcast_rule(b, n);
    case Op::Slice:
      return n.operand(0).type() == n.type() ? n.operand(0) : Value();
    case Op::Concat: return n.num_operands() == 1 ? n.operand(0) : Value();
    case Op::Pad:
      return is_zero(n.ints("low")) && is_zero(n.ints("high")) ? n.operand(0)
                                                               : Value();
    default: return {};
  }
}

Value canonicalize_reduction(Builder& b, Node& n) {
  switch (n.op()) {
    case Op::Softmax:
    case Op::SoftmaxGrad:
    case Op::LogSumExp:
    case Op::ArgMax:
      if (n.i("axis") != n.operand(0).type().rank() - 1) return {};
      n.set_attr("axis", i64(-1));
      return n.result();
    case Op::Sum:
    case Op::Mean:
    case Op::ReduceMax:
    case Op::ReduceMin: break;
    default: return {};
  }
  Value x = n.operand(0);
  if (x.type().numel() == n.type().numel()) return b.reshape(x, n.type().dims);
  auto axes = n.ints("axes");
  for (i64& a : axes)
    if (a < 0) a += x.type().rank();
  std::sort(axes.begin(), axes.end());
  if (axes == n.ints("axes")) return {};
  n.set_attr("axes", axes);
  return n.result();
}

}  // namespace moec
