// Reverse mode over the graph. For each grad(loss, x...):
//  1. mark the nodes between the x and the loss that depend on an x,
//  2. walk back from the loss; each marked node that has a gradient hands
//     gradients to its operands by its op's vjp; an op without one is first
//     replaced by its decomposition,
//  3. the gradients of the x stand for the results of the grad op.
// Each node is visited once, so the cost is linear in the graph.
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "ir/builder.h"
#include "ir/op_def.h"
#include "ir/text.h"
#include "passes/pass.h"
#include "passes/rewrite.h"
#include "support/error.h"

namespace moec {
namespace {

bool passes_gradient(const Node& n) {
  return n.op() != Op::StopGradient && !has_trait(n, kNotDifferentiable);
}

class Sweep {
 public:
  explicit Sweep(Node* grad) : graph_(grad->graph()), grad_(grad) {
    for (int i = 1; i < grad->num_operands(); ++i)
      wanted_.insert(grad->operand(i));
  }

  void run() {
    mark();
    Value loss = grad_->operand(0);
    {
      Builder b(graph_, grad_);
      b.where = loss.node->where;
      if (depends(loss)) gradient_[loss] = b.constant(loss.type(), 1);
    }
    for (Node* n = loss.node; n && n != start_;) {
      if (dependent_.contains(n) && !propagate(*n)) {
        n = decompose(n);
        continue;
      }
      n = n->prev();
    }
    finish();
  }

 private:
  bool depends(Value v) const {
    return wanted_.contains(v) || dependent_.contains(v.node);
  }

  void mark_node(Node* n) {
    if (!passes_gradient(*n) || n->op() == Op::Return) return;
    for (Value v : n->operands())
      if (is_float(v.type().dtype) && depends(v)) {
        dependent_.insert(n);
        return;
      }
  }

  // Arguments come first in a graph, so the walk is over what follows them.
  void mark() {
    start_ = graph_.args().empty() ? nullptr : graph_.args().back();
    for (Node* n = start_ ? start_->next() : graph_.first(); n != grad_;
         n = n->next())
      mark_node(n);
  }

  void add(Builder& b, Value to, Value g) {
    MOEC_CHECK(g.type() == to.type(), "gradient of {} has type {}",
               print(*to.node), to_string(g.type()));
    Value& sum = gradient_[to];
    sum = sum ? b.add(sum, g) : g;
  }

  // False if the op has no rule of its own.
  bool propagate(Node& n) {
    Values dy;
    bool any = false;
    for (int i = 0; i < n.num_results(); ++i) {
      auto at = gradient_.find(n.result(i));
      dy.push_back(at == gradient_.end() ? Value() : at->second);
      any |= bool(dy.back());
    }
    if (!any) return true;
    const OpDef& d = n.def();
    if (!d.vjp) {
      if (d.decompose) return false;
      user_error(
          "grad: {} has no gradient: {}\n  at {}\n  hint: put stop_gradient "
          "on its operands or take the gradient of something else",
          d.name, print(n), n.where.scope);
    }
    Builder b(graph_, grad_);
    b.where = n.where;
    Values dx = d.vjp(b, n, dy);
    MOEC_CHECK(int(dx.size()) <= n.num_operands(), "{}", d.name);
    for (size_t i = 0; i < dx.size(); ++i) {
      Value x = n.operand(int(i));
      if (dx[i] && is_float(x.type().dtype) && depends(x)) add(b, x, dx[i]);
    }
    return true;
  }

  // Puts the decomposition in the node's place, with its gradients; returns
  // the node to go on with, the last of the new ones.
  Node* decompose(Node* n) {
    Node* before = n->prev();
    Builder b(graph_, n);
    Values values = n->def().decompose(b, *n);
    for (int i = 0; i < n->num_results(); ++i) {
      auto at = gradient_.find(n->result(i));
      if (at != gradient_.end()) {
        Value g = at->second;
        gradient_.erase(at);
        Value& sum = gradient_[values[i]];
        MOEC_CHECK(!sum, "decomposition of {} returns a used value",
                   op_name(n->op()));
        sum = g;
      }
      graph_.replace_all_uses(n->result(i), values[i]);
    }
    for (Node* made = before ? before->next() : graph_.first(); made != n;
         made = made->next())
      mark_node(made);
    Node* last = n->prev();
    graph_.erase(n);
    return last;
  }

  void finish() {
    for (int i = 1; i < grad_->num_operands(); ++i) {
      Value x = grad_->operand(i);
      auto at = gradient_.find(x);
      Builder b(graph_, grad_);
      b.where = x.node->where;
      Value g = at == gradient_.end() ? b.zeros_like(x) : at->second;
      graph_.replace_all_uses(grad_->result(i - 1), g);
    }
    graph_.erase(grad_);
  }

  Graph& graph_;
  Node* grad_;
  Node* start_ = nullptr;
  absl::flat_hash_set<Value> wanted_;
  absl::flat_hash_set<Node*> dependent_;
  absl::flat_hash_map<Value, Value> gradient_;
};

}  // namespace

bool grad(Graph& g, PassContext&) {
  bool changed = false;
  for (Node* n : g)
    if (n->op() == Op::Grad) {
      Sweep(n).run();
      changed = true;
    }
  for (Node* n : g)
    if (n->op() == Op::StopGradient) {
      take_names(*n, *n->operand(0).node);
      g.replace_all_uses(n->result(), n->operand(0));
      g.erase(n);
      changed = true;
    }
  return changed;
}

}  // namespace moec
