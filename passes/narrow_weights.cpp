// Weights that a function gets in bf16 are read as they are: in products of
// few rows f32 activations meet bf16 weights, and rows of a table are widened
// after the lookup. Elsewhere weights are widened first, or mixed-precision
// multiplies in bf16.
#include <algorithm>

#include "ir/builder.h"
#include "passes/few_rows.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

// What was widened to f32, or none.
Value stored(Value v) {
  Node& n = *v.node;
  if (n.op() != Op::Cast || v.type().dtype != DType::F32) return {};
  Value from = n.operand(0);
  return from.type().dtype == DType::BF16 ? from : Value();
}

bool narrow_matmul(Node& n) {
  if (n.operand(0).type().dtype != DType::F32) return false;
  Value w = stored(n.operand(1));
  if (w) n.set_operand(1, w);
  return bool(w);
}

// The matrices of all experts, which are stored alike.
bool narrow_experts(Node& n) {
  std::vector<std::pair<int, Value>> weights;
  for (int i = 5; i < n.num_operands(); ++i)
    if (n.operand(i).type().rank() == 3)
      weights.emplace_back(i, stored(n.operand(i)));
  bool all =
      std::ranges::all_of(weights, [](auto& w) { return bool(w.second); });
  if (all)
    for (auto& [i, w] : weights) n.set_operand(i, w);
  return all;
}

bool narrow_lookup(Graph& g, Node& n) {
  Value table = stored(n.operand(0));
  if (!table) return false;
  Builder b(g, &n);
  Node* rows = b.node(n.op(), {table, n.operand(1)}, n.attr_list());
  Value wide = b.cast(rows->result(), DType::F32);
  take_names(n, *wide.node);
  g.replace_all_uses(n.result(), wide);
  g.erase(&n);
  return true;
}

}  // namespace

bool has_few_rows(const Node& n) {
  if (n.op() == Op::MoeFfn)
    return n.operand(0).type().dims[0] <= kFewRows && n.num_uses(1) == 0;
  if (n.op() != Op::Matmul || n.b("transpose_a") || !n.b("transpose_b"))
    return false;
  const Type &a = n.operand(0).type(), &b = n.operand(1).type();
  return b.numel() > 0 && b.numel() == b.dim(-1) * b.dim(-2) && a.numel() > 0 &&
         a.numel() <= kFewRows * a.dim(-1);
}

bool narrow_weights(Graph& g, PassContext&) {
  bool changed = false;
  for (Node *n = g.first(), *next; n; n = next) {
    next = n->next();
    if (n->op() == Op::Embedding || n->op() == Op::Gather)
      changed |= narrow_lookup(g, *n);
    else if (has_few_rows(*n))
      changed |= n->op() == Op::Matmul ? narrow_matmul(*n) : narrow_experts(*n);
  }
  return changed;
}

}  // namespace moec
