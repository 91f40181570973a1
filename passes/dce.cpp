#include "ir/op_def.h"
#include "passes/pass.h"

namespace moec {

bool dce(Graph& g, PassContext&) {
  bool changed = false;
  // From the end, so that a chain of dead nodes goes in one walk.
  for (Node* n = g.last(); n;) {
    Node* before = n->prev();
    if (n->users().empty() && !has_trait(*n, kImpure)) {
      g.erase(n);
      changed = true;
    }
    n = before;
  }
  return changed;
}

}  // namespace moec
