// 1. Values that share memory are put into classes: reshapes with their
//    operand, results with the operand they are written over.
// 2. Each class gets a lifetime, from its first write to its last use, and a
//    home: an argument's buffer, an output's, a constant, or the arena.
// 3. Arena classes are placed largest first, each at the lowest offset where
//    nothing that lives at the same time is in the way.
#include <algorithm>
#include <numeric>

#include "ir/op_def.h"
#include "passes/memory_plan.h"
#include "support/error.h"

namespace moec {
namespace {

i64 aligned(i64 bytes) {
  return (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
}

// A body whose kernels make more than one sweep over the operands: partial
// results of columns are a launch of their own.
bool sweeps_twice(const Graph& body) {
  for (Node* n : body) {
    if (n->op() == Op::LayerNormGrad || n->op() == Op::RmsNormGrad) return true;
    bool sums = n->op() == Op::Sum || n->op() == Op::Mean ||
                n->op() == Op::ReduceMax || n->op() == Op::ReduceMin;
    if (sums &&
        n->ints("axes") != std::vector<i64>{n->operand(0).type().rank() - 1})
      return true;
  }
  return false;
}

// The body reads the argument element by element, where it writes results.
bool read_elementwise(const Graph& body, int arg) {
  for (const Use& u : body.args()[arg]->users())
    if (!has_trait(*u.node, kElementwise) && u.node->op() != Op::Dropout)
      return false;
  return true;
}

// Kernels before the one that reads the elementwise operands may write what
// is not made of them.
bool written_early(const Graph& body, int result) {
  Op op = body.outputs()[result].node->op();
  return op == Op::MoeFfn || op == Op::MoeFfnGrad;
}

struct Class {
  i64 bytes = 0;
  int first = 0, last = 0;  // positions of nodes, both included
  BufferSlot slot;
  bool placed = false;
};

class Planner {
 public:
  Planner(const Graph& g, WorkspaceFn workspace) : g_(g) {
    for (Node* n : g) {
      position_[n] = int(nodes_.size());
      nodes_.push_back(n);
    }
    end_ = int(nodes_.size());
    arg_of_output_ = donated_args(g);
    plan_.donated.assign(g.args().size(), -1);
    for (int i = 0; i < int(arg_of_output_.size()); ++i)
      if (arg_of_output_[i] >= 0) plan_.donated[arg_of_output_[i]] = i;
    for (Node* n : nodes_) classify(n);
    for (Node* n : nodes_)
      if (i64 bytes = workspace(*n); bytes > 0)
        workspaces_.emplace_back(
            n, new_class(aligned(bytes), position_[n], position_[n]));
  }

  MemoryPlan run() {
    for (int i = 0; i < int(g_.outputs().size()); ++i) place_output(i);
    place_arena();
    for (auto& [v, c] : class_of_) plan_.slots[v] = sized(c, v.type().bytes());
    for (auto& [n, c] : workspaces_)
      plan_.workspaces[n] = sized(c, classes_[c].bytes);
    finish_copies();
    return std::move(plan_);
  }

 private:
  int new_class(i64 bytes, int first, int last) {
    classes_.push_back({bytes, first, last, {}, false});
    return int(classes_.size()) - 1;
  }

  BufferSlot sized(int c, i64 bytes) const {
    BufferSlot s = classes_[c].slot;
    s.bytes = bytes;
    return s;
  }

  // The last position that reads `v` or, through reshapes, its elements.
  int last_use(Value v) const {
    int last = position_.at(v.node);
    for (const Use& u : v.node->users()) {
      if (u.node->operand(u.operand) != v) continue;
      if (u.node->op() == Op::Return) return end_;
      last = std::max(last, u.node->op() == Op::Reshape
                                ? last_use(u.node->result())
                                : position_.at(u.node));
    }
    return last;
  }

  void classify(Node* n) {
    if (n->op() == Op::Return) return;
    int at = position_[n];
    if (n->op() == Op::Arg) {
      int c = new_class(n->type().bytes(), -1, last_use(n->result()));
      classes_[c].slot = {PlannedSpace::Input, num_args_++, 0, 0};
      classes_[c].placed = true;
      class_of_[n->result()] = c;
      return;
    }
    if (n->op() == Op::Reshape) {
      class_of_[n->result()] = class_of_.at(n->operand(0));
      return;
    }
    std::vector<int> taken;
    for (int r = 0; r < n->num_results(); ++r) {
      Value v = n->result(r);
      int last = last_use(v);
      int c = share_with_operand(n, r, at, last, taken);
      if (c < 0) c = new_class(aligned(v.type().bytes()), at, last);
      taken.push_back(c);
      classes_[c].last = std::max(classes_[c].last, last);
      class_of_[v] = c;
    }
    if (n->op() == Op::Constant && n->type().bytes() <= kMaxConstantBytes) {
      Class& c = classes_[class_of_[n->result()]];
      c.slot = {PlannedSpace::Constant, int(plan_.constants.size()), 0, 0};
      c.placed = true;
      plan_.constants.push_back(n);
    }
  }

  // Whether result `r` can take over the memory of a class whose value dies
  // here; -1 if there is none.
  int share_with_operand(Node* n, int r, int at, int last,
                         const std::vector<int>& taken) {
    for (int i = 0; i < n->num_operands(); ++i) {
      if (!may_write_in_place(*n, r, i)) continue;
      int c = class_of_.at(n->operand(i));
      if (classes_[c].last > at) continue;
      if (std::find(taken.begin(), taken.end(), c) != taken.end()) continue;
      // An operand that stands twice must allow it in both places.
      bool ok = true;
      for (int k = 0; k < n->num_operands(); ++k)
        if (class_of_.at(n->operand(k)) == c)
          ok &= may_write_in_place(*n, r, k);
      if (!ok) continue;
      if (!classes_[c].placed) return c;
      // An argument's memory may be written only by the output it is given
      // to.
      const BufferSlot& s = classes_[c].slot;
      if (s.space == PlannedSpace::Input && donates(s.index, n->result(r)))
        return c;
    }
    return -1;
  }

  bool donates(int arg, Value v) const {
    int output = plan_.donated[arg];
    return output >= 0 && g_.outputs()[output] == v;
  }

  // Puts the class of output `i` into the caller's buffer, or plans a copy.
  void place_output(int i) {
    Value v = g_.outputs()[i];
    int c = class_of_.at(v);
    BufferSlot to{PlannedSpace::Output, i, 0, v.type().bytes()};
    int arg = arg_of_output_[i];
    if (classes_[c].placed) {
      bool there = classes_[c].slot.space == PlannedSpace::Input &&
                   classes_[c].slot.index == arg;
      if (!there) copies_.push_back({c, to});
      return;
    }
    if (arg >= 0) {
      // The argument's last reader must not come after the first write.
      int arg_class = class_of_.at(g_.args()[arg]->result());
      int last_read = classes_[arg_class].last;
      if (last_read > classes_[c].first ||
          (last_read == classes_[c].first && !written_in_place(c, arg_class))) {
        copies_.push_back({c, to});
        return;
      }
    }
    classes_[c].slot = to;
    classes_[c].placed = true;
  }

  // The node that writes class `c` first may read `arg_class` meanwhile.
  bool written_in_place(int c, int arg_class) const {
    Node* n = nodes_[classes_[c].first];
    for (int r = 0; r < n->num_results(); ++r) {
      if (class_of_.at(n->result(r)) != c) continue;
      for (int i = 0; i < n->num_operands(); ++i)
        if (class_of_.at(n->operand(i)) == arg_class &&
            !may_write_in_place(*n, r, i))
          return false;
    }
    return true;
  }

  void place_arena() {
    std::vector<int> order;
    for (int c = 0; c < int(classes_.size()); ++c)
      if (!classes_[c].placed && classes_[c].bytes > 0) order.push_back(c);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return classes_[a].bytes > classes_[b].bytes;
    });
    std::vector<int> placed;  // by offset
    for (int c : order) {
      Class& at = classes_[c];
      i64 offset = 0, best = -1, best_gap = 0;
      for (int other : placed) {
        const Class& o = classes_[other];
        if (o.last < at.first || o.first > at.last) continue;
        i64 gap = o.slot.offset - offset;
        // The tightest gap keeps the large ones for what comes later.
        if (gap >= at.bytes && (best < 0 || gap < best_gap)) {
          best = offset;
          best_gap = gap;
        }
        offset = std::max(offset, o.slot.offset + o.bytes);
      }
      at.slot = {PlannedSpace::Arena, 0, best < 0 ? offset : best, 0};
      at.placed = true;
      plan_.arena_bytes =
          std::max(plan_.arena_bytes, at.slot.offset + at.bytes);
      placed.insert(std::upper_bound(placed.begin(), placed.end(), c,
                                     [&](int a, int b) {
                                       return classes_[a].slot.offset <
                                              classes_[b].slot.offset;
                                     }),
                    c);
    }
    measure_live(order);
  }

  void measure_live(const std::vector<int>& arena) {
    std::vector<i64> change(end_ + 2);
    for (int c : arena) {
      change[std::max(classes_[c].first, 0)] += classes_[c].bytes;
      change[classes_[c].last + 1] -= classes_[c].bytes;
    }
    i64 live = 0;
    for (i64 d : change)
      plan_.live_bytes = std::max(plan_.live_bytes, live += d);
  }

  // An argument that goes to an output while its own buffer is given to
  // another is saved in the arena first.
  void finish_copies() {
    std::vector<PlannedCopy> writes;
    for (auto& [c, to] : copies_) {
      BufferSlot from = sized(c, to.bytes);
      if (from.space == PlannedSpace::Input && plan_.donated[from.index] >= 0) {
        BufferSlot saved{PlannedSpace::Arena, 0, plan_.arena_bytes, to.bytes};
        plan_.arena_bytes += aligned(to.bytes);
        plan_.copies.push_back({from, saved});
        from = saved;
      }
      writes.push_back({from, to});
    }
    plan_.copies.insert(plan_.copies.end(), writes.begin(), writes.end());
  }

  struct OutputCopy {
    int from;  // class
    BufferSlot to;
  };

  const Graph& g_;
  MemoryPlan plan_;
  std::vector<Node*> nodes_;
  absl::flat_hash_map<const Node*, int> position_;
  int end_ = 0;
  absl::flat_hash_map<Value, int> class_of_;
  std::vector<int> arg_of_output_;
  int num_args_ = 0;
  std::vector<std::pair<Node*, int>> workspaces_;
  std::vector<Class> classes_;
  std::vector<OutputCopy> copies_;
};

}  // namespace

bool may_write_in_place(const Node& n, int result, int operand) {
  const Type& from = n.operand(operand).type();
  const Type& to = n.type(result);
  if (from != to) return false;
  switch (n.op()) {
    case Op::AdamW:
      // p, m and v; the gradient dies as well but has no result.
      return operand == (result == 0 ? 0 : result + 1);
    case Op::DynamicUpdateSlice: return operand == 0;
    case Op::Dropout: return operand == 0;
    case Op::Fusion:
      return read_elementwise(*n.body(), operand) && !sweeps_twice(*n.body()) &&
             !written_early(*n.body(), result);
    default: return has_trait(n, kElementwise);
  }
}

std::vector<int> donated_args(const Graph& g) {
  std::vector<int> args(g.outputs().size(), -1);
  if (g.output_names.empty()) return args;
  absl::flat_hash_map<std::string_view, int> by_name;
  for (int a = 0; a < int(g.args().size()); ++a) by_name[g.arg_name(a)] = a;
  for (size_t i = 0; i < args.size(); ++i) {
    auto at = by_name.find(g.output_names[i]);
    if (at != by_name.end() &&
        g.args()[at->second]->type() == g.outputs()[i].type())
      args[i] = at->second;
  }
  return args;
}

MemoryPlan plan_memory(const Graph& g, WorkspaceFn workspace_bytes) {
  return Planner(g, workspace_bytes).run();
}

MemoryPlan plan_memory(const Graph& g) {
  auto none = [](const Node&) { return i64(0); };
  return plan_memory(g, none);
}

}  // namespace moec
