#include "ir/builder.h"
#include "ir/op_def.h"
#include "passes/pass.h"
#include "passes/rewrite.h"
#include "support/error.h"

namespace moec {
namespace {

// Puts the decomposition in the node's place; returns the first new node, to
// look at them in turn, or what followed the node if there is none.
Node* decompose(Graph& g, Node* n) {
  Node *before = n->prev(), *after = n->next();
  Builder b(g, n);
  Values values = n->def().decompose(b, *n);
  MOEC_CHECK(int(values.size()) >= n->num_results(), "{}", n->def().name);
  for (int i = 0; i < n->num_results(); ++i) {
    if (n->num_results() == 1) take_names(*n, *values[i].node);
    g.replace_all_uses(n->result(i), values[i]);
  }
  bool any = n->prev() != before;
  g.erase(n);
  return !any ? after : before ? before->next() : g.first();
}

}  // namespace

bool legalize(Graph& g, PassContext& ctx) {
  const auto& runs = ctx.options.has_lowering;
  if (!runs) return false;
  bool changed = false;
  for (Node* n = g.first(); n;) {
    if (has_trait(*n, kImpure) || runs(*n)) {
      n = n->next();
      continue;
    }
    if (!n->def().decompose)
      user_error(
          "{}: this device cannot run it on {}\n  at {}\n  hint: --device "
          "ref64 runs every op",
          n->def().name,
          n->num_results() ? to_string(n->type()) : std::string("nothing"),
          n->where.scope);
    n = decompose(g, n);
    changed = true;
  }
  return changed;
}

}  // namespace moec
