// linear_cross_entropy and its gradient -> linear_cross_entropy_both, where
// the weight of each token's loss is known without the losses (a mean, or a
// mean over counted tokens): each block of logits is then made once.
#include <absl/container/flat_hash_set.h>

#include "ir/builder.h"
#include "passes/pass.h"
#include "passes/rewrite.h"
#include "passes/topological.h"

namespace moec {
namespace {

// Whether `v` needs a result of `n`. Nodes before `n` are not looked at, for
// none of them does.
bool depends_on(Value v, Node* n) {
  absl::flat_hash_set<Node*> later;
  for (Node* at = n; at; at = at->next()) later.insert(at);
  absl::flat_hash_set<Node*> seen;
  std::vector<Node*> stack{v.node};
  while (!stack.empty()) {
    Node* at = stack.back();
    stack.pop_back();
    if (at == n) return true;
    if (!later.contains(at) || !seen.insert(at).second) continue;
    for (Value o : at->operands()) stack.push_back(o.node);
  }
  return false;
}

// The forward op with the gradient's own operands, or nullptr.
Node* forward_of(const Node& grad) {
  Node* f = grad.operand(3).node;
  if (f->op() != Op::LinearCrossEntropy || grad.operand(3).index != 1)
    return nullptr;
  bool bias = grad.num_operands() > 5;
  if (f->num_operands() != (bias ? 4 : 3)) return nullptr;
  for (int i = 0; i < 3; ++i)
    if (f->operand(i) != grad.operand(i)) return nullptr;
  return !bias || f->operand(3) == grad.operand(5) ? f : nullptr;
}

}  // namespace

bool fuse_loss_grad(Graph& g, PassContext& ctx) {
  std::vector<Node*> gradients;
  for (Node* n : g)
    if (n->op() == Op::LinearCrossEntropyGrad) gradients.push_back(n);
  bool changed = false;
  for (Node* n : gradients) {
    Node* f = forward_of(*n);
    if (!f || depends_on(n->operand(4), f)) {
      ctx.explain("fuse-loss-grad", *n,
                  f ? "the weights of the losses depend on the losses"
                    : "its loss is not of the same operands");
      continue;
    }
    Values operands{n->operand(0), n->operand(1), n->operand(2), n->operand(4)};
    if (n->num_operands() > 5) operands.push_back(n->operand(5));
    Builder b(g, f);
    Node* both = b.node(Op::LinearCrossEntropyBoth, operands);
    for (int i = 0; i < 2; ++i)
      g.replace_all_uses(f->result(i), both->result(i));
    for (int i = 0; i < n->num_results(); ++i)
      g.replace_all_uses(n->result(i), both->result(2 + i));
    erase_dead(n);
    erase_dead(f);
    // The weights may have been made after the losses.
    sort_topologically(g);
    changed = true;
  }
  return changed;
}

}  // namespace moec
