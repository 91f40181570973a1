// Recomputes cheap values instead of keeping them from the forward to the
// backward (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
// 2016, for values that cost no matrix product). At the place where most
// memory is alive, a value made by cheap ops from values that are alive there
// anyway is dropped and computed again before its next reader.
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include <algorithm>

#include "ir/builder.h"
#include "ir/op_def.h"
#include "passes/memory_plan.h"
#include "passes/pass.h"

namespace moec {
namespace {

bool is_cheap(const Node& n) {
  if (has_trait(n, kElementwise)) return true;
  switch (n.op()) {
    case Op::Reshape:
    case Op::Broadcast:
    case Op::Constant:
    case Op::Iota:
    case Op::Dropout:
    case Op::Gather:
    case Op::RmsNorm:
    case Op::LayerNorm: return true;
    default: return false;
  }
}

class Remat {
 public:
  explicit Remat(Graph& g) : g_(g) {
    for (Node* n : g) {
      position_[n] = int(nodes_.size());
      nodes_.push_back(n);
    }
    find_peak();
  }

  bool run() {
    bool changed = false;
    for (int i = 0; i < peak_; ++i)
      for (int r = 0; r < nodes_[i]->num_results(); ++r)
        steps(nodes_[i]->result(r));
    for (int i = peak_; i-- > 0;) {
      Node* n = nodes_[i];
      for (int r = 0; r < n->num_results(); ++r)
        if (crosses(n->result(r)) && can_recompute(n->result(r))) {
          recompute(n->result(r));
          changed = true;
        }
    }
    return changed;
  }

 private:
  // Copies made before are no readers: they stand late and read what is kept.
  int last_use(Value v, bool through_reshapes = true) const {
    int last = position_.at(v.node);
    for (const Use& u : v.node->users()) {
      if (u.node->operand(u.operand) != v || !position_.contains(u.node))
        continue;
      bool same_memory = u.node->op() == Op::Reshape && through_reshapes;
      last = std::max(last, same_memory ? last_use(u.node->result())
                                        : position_.at(u.node));
    }
    return last;
  }

  static bool is_output(Value v) {
    for (const Use& u : v.node->users())
      if (u.node->op() == Op::Return && u.node->operand(u.operand) == v)
        return true;
    return false;
  }

  void find_peak() {
    std::vector<i64> change(nodes_.size() + 2);
    for (Node* n : nodes_) {
      if (n->op() == Op::Arg || n->op() == Op::Reshape) continue;
      for (int r = 0; r < n->num_results(); ++r) {
        Value v = n->result(r);
        if (is_output(v)) continue;  // in the caller's memory
        change[position_[n]] += v.type().bytes();
        change[last_use(v) + 1] -= v.type().bytes();
      }
    }
    i64 live = 0, most = -1;
    for (int i = 0; i < int(nodes_.size()); ++i)
      if ((live += change[i]) > most) {
        most = live;
        peak_ = i;
      }
  }

  // Made before the peak and read after it.
  bool crosses(Value v) const {
    return v.node->op() != Op::Arg && position_.at(v.node) < peak_ &&
           last_use(v, false) > peak_ && v.type().bytes() >= kWorthwhile;
  }

  bool is_alive(Value v) const {
    return v.node->op() == Op::Arg || last_use(v) > peak_;
  }

  // What stays over the peak: arguments, and what cannot be made again.
  bool is_kept(Value v) { return is_alive(v) && !can_recompute(v); }

  // Cheap ops on what stays, or on what can be made again itself.
  bool can_recompute(Value v) { return steps(v) <= kMaxSteps; }

  // How many ops deep; more than kMaxSteps if it cannot be. Found before
  // anything is changed, and remembered.
  int steps(Value v) {
    if (auto at = steps_.find(v); at != steps_.end()) return at->second;
    int deepest = is_cheap(*v.node) ? 1 : kMaxSteps + 1;
    if (deepest == 1)
      for (Value o : v.node->operands()) {
        int below = steps(o);
        if (below > kMaxSteps && is_alive(o)) below = 0;
        deepest = std::max(deepest, below + 1);
      }
    return steps_[v] = std::min(deepest, kMaxSteps + 1);
  }

  // Readers after the peak get a copy that stands before the first of them.
  void recompute(Value v) {
    std::vector<Use> later;
    int first = int(nodes_.size());
    collect(v, later, first);
    Builder b(g_, nodes_[first]);
    absl::flat_hash_map<Value, Value> made;
    Value copy = clone(b, v, made);
    for (const Use& u : later) u.node->set_operand(u.operand, copy);
  }

  void collect(Value v, std::vector<Use>& later, int& first) {
    for (const Use& u : v.node->users()) {
      if (u.node->operand(u.operand) != v) continue;
      auto at = position_.find(u.node);
      if (at == position_.end() || at->second <= peak_) continue;
      later.push_back(u);
      first = std::min(first, at->second);
    }
  }

  Value clone(Builder& b, Value v, absl::flat_hash_map<Value, Value>& made) {
    if (is_kept(v)) return v;
    if (auto at = made.find(v); at != made.end()) return at->second;
    std::vector<Value> operands;
    for (Value o : v.node->operands()) operands.push_back(clone(b, o, made));
    b.where = v.node->where;
    Node* n = b.node(v.node->op(), operands, v.node->attr_list());
    for (int r = 0; r < n->num_results(); ++r)
      made[Value{v.node, r}] = n->result(r);
    return n->result(v.index);
  }

  static constexpr i64 kWorthwhile = 4096;
  static constexpr int kMaxSteps = 6;

  Graph& g_;
  std::vector<Node*> nodes_;
  absl::flat_hash_map<const Node*, int> position_;
  absl::flat_hash_map<Value, int> steps_;
  int peak_ = 0;
};

}  // namespace

bool remat(Graph& g, PassContext& ctx) {
  if (!ctx.options.remat) return false;
  return Remat(g).run();
}

}  // namespace moec
