// A worklist in list order: changed nodes, their users and new nodes go to
// its end. A rule must bring a node nearer to a form that it leaves alone.
#include "passes/rewrite.h"

#include <absl/container/flat_hash_set.h>

#include <deque>

#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

bool is_erased(const Node& n) {
  return !n.prev() && !n.next() && n.graph().first() != &n;
}

bool is_dead(const Node& n) {
  return n.users().empty() && !has_trait(n, kImpure) && !is_erased(n);
}

class Worklist {
 public:
  void push(Node* n) {
    if (queued_.insert(n).second) queue_.push_back(n);
  }
  Node* pop() {
    Node* n = queue_.front();
    queue_.pop_front();
    queued_.erase(n);
    return n;
  }
  bool empty() const { return queue_.empty(); }

 private:
  std::deque<Node*> queue_;
  absl::flat_hash_set<Node*> queued_;
};

// Erased nodes stay in the graph's arena, so pointers to them stay valid and
// unique; `erased` tells them apart.
void erase_dead(Node* n, absl::flat_hash_set<Node*>* erased) {
  std::vector<Node*> stack{n};
  while (!stack.empty()) {
    Node* at = stack.back();
    stack.pop_back();
    if ((erased && erased->contains(at)) || !is_dead(*at)) continue;
    std::vector<Node*> producers;
    for (Value v : at->operands()) {
      bool seen = false;
      for (Node* p : producers) seen |= p == v.node;
      if (!seen) producers.push_back(v.node);
    }
    at->graph().erase(at);
    if (erased) erased->insert(at);
    stack.insert(stack.end(), producers.begin(), producers.end());
  }
}

}  // namespace

void erase_dead(Node* n) { erase_dead(n, nullptr); }

void take_names(Node& from, Node& to) {
  if (to.names.empty() && from.num_results() == to.num_results() &&
      to.op() != Op::Arg)
    to.names = from.names;
}

bool rewrite(Graph& g, Rule rule) {
  Worklist work;
  absl::flat_hash_set<Node*> erased;
  for (Node* n : g) work.push(n);
  bool changed = false;
  // Each rule shrinks a node or its chain; the bound only catches a rule
  // that undoes another.
  i64 budget = 1000 + 200 * i64(g.size());
  while (!work.empty()) {
    Node* n = work.pop();
    if (erased.contains(n)) continue;
    MOEC_CHECK(--budget > 0, "rules of a rewrite undo each other at {}",
               op_name(n->op()));
    std::vector<Node*> producers;
    for (Value v : n->operands()) producers.push_back(v.node);
    Node* before = n->prev();
    Builder b(g, n);
    Value to = rule(b, *n);
    if (!to) continue;
    changed = true;
    for (Node* made = before ? before->next() : g.first(); made != n;
         made = made->next())
      work.push(made);
    for (const Use& u : n->users()) work.push(u.node);
    if (to == n->result()) {
      work.push(n);
    } else {
      take_names(*n, *to.node);
      g.replace_all_uses(n->result(), to);
      erase_dead(n, &erased);
    }
    for (Node* p : producers) {
      erase_dead(p, &erased);
      // A producer that is left with one user may fold into it.
      if (!erased.contains(p))
        for (const Use& u : p->users()) work.push(u.node);
    }
  }
  return changed;
}

}  // namespace moec
