// global_norm(a, b, ...) = global_norm(global_norm(a), global_norm(b), ...).
// Where the norm only reports, with no clipping behind it, each gradient can
// so be measured, applied and dropped before the next one is made.
#include <absl/container/flat_hash_set.h>

#include "ir/builder.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

// Smaller gradients may stay until the end.
constexpr i64 kLargeBytes = 64 << 10;

// Whether an update of a parameter waits for the norm.
bool scales_updates(Node* norm) {
  absl::flat_hash_set<Node*> seen;
  std::vector<Node*> stack{norm};
  while (!stack.empty()) {
    Node* n = stack.back();
    stack.pop_back();
    if (n->op() == Op::AdamW) return true;
    for (const Use& u : n->users())
      if (seen.insert(u.node).second) stack.push_back(u.node);
  }
  return false;
}

bool split(Graph& g, Node& norm) {
  Builder b(g, &norm);
  Values parts;
  bool any = false;
  for (Value v : norm.operands()) {
    bool large = v.type().bytes() >= kLargeBytes;
    parts.push_back(large ? b.op(Op::GlobalNorm, {v}) : v);
    any |= large;
  }
  if (!any) return false;
  Node* whole = b.node(Op::GlobalNorm, parts);
  take_names(norm, *whole);
  g.replace_all_uses(norm.result(), whole->result());
  g.erase(&norm);
  return true;
}

}  // namespace

bool split_norm(Graph& g, PassContext& ctx) {
  bool changed = false;
  for (Node* n : g) {
    if (n->op() != Op::GlobalNorm || n->num_operands() < 2) continue;
    if (scales_updates(n))
      ctx.explain("split-norm", *n, "updates are clipped by it");
    else
      changed |= split(g, *n);
  }
  return changed;
}

}  // namespace moec
