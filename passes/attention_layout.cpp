// Projections write [B,T,H,D]; the model states attention over [B,H,T,D]. The
// fused op reads either, so the transposes between them need not exist: they
// move through position-wise ops (rope, norms over the last axis, elementwise)
// and end in the op's `layout`.
#include "ir/builder.h"
#include "ir/op_def.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

bool swaps_heads(const Node& n) {
  return n.op() == Op::Transpose &&
         n.ints("perm") == std::vector<i64>{0, 2, 1, 3};
}

bool position_wise(const Node& n) {
  switch (n.op()) {
    case Op::Rope: return n.i("axis") == -2 || n.i("axis") == 2;
    case Op::RmsNorm: return true;
    case Op::Mul:
    case Op::Add: return n.operand(1).type().rank() <= 1;
    default: return has_trait(n, kElementwise) && n.num_operands() == 1;
  }
}

// With one head or one position a reshape is as good as a transpose.
bool is_reshape(Value v) {
  const Dims& d = v.type().dims;
  return d[1] == 1 || d[2] == 1;
}

// Whether `v` is a head transpose with position-wise ops after it, each of
// which only this use needs.
bool can_strip(Value v) {
  while (!swaps_heads(*v.node) && !is_reshape(v)) {
    if (!position_wise(*v.node) || v.node->num_uses(0) != 1) return false;
    v = v.node->operand(0);
  }
  return true;
}

// A strip of `v` makes a transpose go.
bool has_transpose(Value v) {
  while (!swaps_heads(*v.node) && !is_reshape(v)) v = v.node->operand(0);
  return swaps_heads(*v.node);
}

// The same value in [B,T,H,D].
Value strip(Value v) {
  Node& n = *v.node;
  if (swaps_heads(n)) return n.operand(0);
  if (is_reshape(v)) {
    const Dims& d = v.type().dims;
    Builder b(n.graph(), n.next());
    return b.reshape(v, {d[0], d[2], d[1], d[3]});
  }
  Values operands(n.operands().begin(), n.operands().end());
  operands[0] = strip(operands[0]);
  Builder b(n.graph(), &n);
  AttrList attrs = n.attr_list();
  for (auto& [name, value] : attrs)
    if (n.op() == Op::Rope && name == "axis") value = i64(-3);
  Node* stripped = b.node(n.op(), operands, attrs);
  take_names(n, *stripped);
  return stripped->result();
}

}  // namespace

bool attention_layout(Graph& g, PassContext& context) {
  bool changed = false;
  for (Node* n : g) {
    if (n->op() != Op::Attention || n->s("layout") != "bhtd") continue;
    if (!can_strip(n->operand(0)) || !can_strip(n->operand(1)) ||
        !can_strip(n->operand(2))) {
      context.explain("attention-layout", *n,
                      "an operand is no transposed projection");
      continue;
    }
    Values operands(n->operands().begin(), n->operands().end());
    if (!has_transpose(operands[0]) && !has_transpose(operands[1]) &&
        !has_transpose(operands[2]))
      continue;
    for (int i = 0; i < 3; ++i) operands[i] = strip(operands[i]);
    AttrList attrs = n->attr_list();
    for (auto& [name, value] : attrs)
      if (name == "layout") value = std::string("bthd");
    Builder b(g, n);
    Node* fused = b.node(Op::Attention, operands, attrs);
    take_names(*n, *fused);
    g.replace_all_uses(n->result(0),
                       b.transpose(fused->result(0), {0, 2, 1, 3}));
    g.replace_all_uses(n->result(1), fused->result(1));
    erase_dead(n);
    changed = true;
  }
  return changed;
}

}  // namespace moec
