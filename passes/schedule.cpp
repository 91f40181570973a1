// Orders the nodes to lower the peak of live temporaries. The order they were
// made in is good already (forward, then backward in reverse), so two local
// moves are tried on it and the best of the results is kept:
//  - hoist: a node that frees at least what it allocates runs as soon as its
//    operands are there (an optimizer update, a sum, a cast down),
//  - sink: a node that allocates more than it frees waits for its first user
//    (constants, random numbers, recomputed values, transposes).
// All of it is linear in the graph's edges and depends on nothing else.
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "ir/op_def.h"
#include "passes/memory_plan.h"
#include "passes/pass.h"

namespace moec {
namespace {

// Sizes and users of the memory behind values; a reshape is its operand.
class Lifetimes {
 public:
  explicit Lifetimes(const Graph& g) {
    auto donated = donated_args(g);
    for (size_t i = 0; i < donated.size(); ++i) {
      outside_.insert(g.outputs()[i]);
      if (donated[i] >= 0)
        writer_of_[g.outputs()[i].node].push_back(g.args()[donated[i]]);
    }
    for (Node* n : g)
      if (n->op() != Op::Reshape && n->op() != Op::Return)
        for (int r = 0; r < n->num_results(); ++r)
          left_[n->result(r)] = readers(n->result(r));
  }

  static Value root(Value v) {
    while (v.node->op() == Op::Reshape) v = v.node->operand(0);
    return v;
  }

  // Bytes that the graph's arena has for `v`.
  i64 bytes(Value v) const {
    if (v.node->op() == Op::Arg || outside_.contains(v)) return 0;
    if (v.node->op() == Op::Constant && v.type().bytes() <= kMaxConstantBytes)
      return 0;
    return v.type().bytes();
  }

  i64 allocates(Node& n) const {
    if (n.op() == Op::Reshape) return 0;
    i64 sum = 0;
    for (int r = 0; r < n.num_results(); ++r) sum += bytes(n.result(r));
    return sum;
  }

  // Bytes whose last reader is `n`, given what has run.
  i64 frees(Node& n) const {
    i64 sum = 0;
    for (Value v : distinct(n))
      if (left_.at(v) == 1) sum += bytes(v);
    return sum;
  }

  void run(Node& n) {
    for (Value v : distinct(n)) --left_.at(v);
  }

  bool has_one_reader_left(Value root) const { return left_.at(root) == 1; }

  // An update of an argument must not run before the argument's other
  // readers, or it could not be written in place.
  bool may_write(Node& n) const {
    auto at = writer_of_.find(&n);
    if (at == writer_of_.end()) return true;
    for (Node* arg : at->second) {
      bool reads = false;
      for (Value v : n.operands()) reads |= root(v) == arg->result();
      if (left_.at(arg->result()) > int(reads)) return false;
    }
    return true;
  }

  // Whether a result of `n` takes over the memory of an operand that dies.
  i64 in_place(Node& n) const {
    i64 sum = 0;
    absl::flat_hash_set<Value> taken;
    for (int r = 0; r < n.num_results(); ++r)
      for (int i = 0; i < n.num_operands(); ++i) {
        Value v = root(n.operand(i));
        if (left_.at(v) != 1 || !may_write_in_place(n, r, i)) continue;
        if (!taken.insert(v).second) continue;
        sum += std::min(bytes(v), bytes(n.result(r)));
        break;
      }
    return sum;
  }

 private:
  // Nodes, each once, that read the memory of `v`.
  static int readers(Value v) {
    absl::flat_hash_set<Node*> nodes;
    std::vector<Value> names{v};
    while (!names.empty()) {
      Value at = names.back();
      names.pop_back();
      for (const Use& u : at.node->users()) {
        if (u.node->operand(u.operand) != at) continue;
        if (u.node->op() == Op::Reshape) names.push_back(u.node->result());
        nodes.insert(u.node);
      }
    }
    return int(nodes.size());
  }

  static absl::InlinedVector<Value, 4> distinct(const Node& n) {
    absl::InlinedVector<Value, 4> roots;
    for (Value v : n.operands()) {
      Value r = root(v);
      if (std::find(roots.begin(), roots.end(), r) == roots.end())
        roots.push_back(r);
    }
    return roots;
  }

  absl::flat_hash_map<Value, int> left_;  // readers that have not run
  absl::flat_hash_set<Value> outside_;    // in the caller's memory
  absl::flat_hash_map<const Node*, std::vector<Node*>> writer_of_;
};

class Ordering {
 public:
  Ordering(const Graph& g, const std::vector<Node*>& given, bool hoist,
           bool sink)
      : lifetimes_(g), hoist_(hoist), sink_(sink) {
    for (Node* n : given) position_[n] = int(position_.size());
    for (Node* n : given) {
      if (done_.contains(n) || !lifetimes_.may_write(*n)) continue;
      if (sink_ && !n->users().empty() && !returned(*n) &&
          lifetimes_.allocates(*n) > lifetimes_.frees(*n))
        continue;
      demand(n);
    }
    for (Node* n : given) demand(n);
  }

  std::vector<Node*> order;

 private:
  static bool returned(const Node& n) {
    for (const Use& u : n.users())
      if (u.node->op() == Op::Return) return true;
    return false;
  }

  bool pending(const Node* n) const {
    return position_.contains(n) && !done_.contains(n);
  }

  // Runs `n`, its operands before it, and what it lets be hoisted after it.
  void demand(Node* wanted) {
    std::vector<Node*> stack{wanted};
    while (!stack.empty()) {
      Node* n = stack.back();
      if (!pending(n)) {
        stack.pop_back();
        continue;
      }
      size_t before = stack.size();
      for (int i = n->num_operands(); i-- > 0;)
        if (pending(n->operand(i).node)) stack.push_back(n->operand(i).node);
      if (stack.size() > before) continue;
      stack.pop_back();
      emit(n);
      if (hoist_) push_hoistable(n, stack);
    }
  }

  void emit(Node* n) {
    done_.insert(n);
    lifetimes_.run(*n);
    order.push_back(n);
  }

  // Readers of what `n` wrote, the last readers of what it read, and writers
  // of arguments that it read.
  void push_hoistable(Node* n, std::vector<Node*>& stack) {
    std::vector<Node*> next;
    auto consider = [&](Node* u) {
      if (!pending(u) || !ready(*u) || !lifetimes_.may_write(*u)) return;
      if (lifetimes_.allocates(*u) <= lifetimes_.frees(*u)) next.push_back(u);
    };
    for (const Use& u : n->users()) consider(u.node);
    for (Value v : n->operands()) {
      Value r = Lifetimes::root(v);
      bool is_arg = r.node->op() == Op::Arg;
      if (!is_arg && !lifetimes_.has_one_reader_left(r)) continue;
      for (const Use& u : v.node->users())
        if (!is_arg || u.node->op() == Op::AdamW) consider(u.node);
    }
    // The first made is run first.
    std::sort(next.begin(), next.end(), [&](Node* a, Node* b) {
      return position_.at(a) > position_.at(b);
    });
    next.erase(std::unique(next.begin(), next.end()), next.end());
    stack.insert(stack.end(), next.begin(), next.end());
  }

  bool ready(const Node& n) const {
    for (Value v : n.operands())
      if (pending(v.node)) return false;
    return true;
  }

  Lifetimes lifetimes_;
  bool hoist_, sink_;
  absl::flat_hash_map<const Node*, int> position_;
  absl::flat_hash_set<const Node*> done_;
};

}  // namespace

i64 peak_live_bytes(const Graph& g, absl::Span<Node* const> order) {
  Lifetimes lifetimes(g);
  i64 live = 0, peak = 0;
  for (Node* n : order) {
    i64 made = lifetimes.allocates(*n);
    peak = std::max(peak, live + made - lifetimes.in_place(*n));
    live += made - lifetimes.frees(*n);
    lifetimes.run(*n);
  }
  return peak;
}

// Updates of arguments that stand before another reader of the argument: each
// would cost a copy.
int late_readers(const Graph& g, absl::Span<Node* const> order) {
  Lifetimes lifetimes(g);
  int n = 0;
  for (Node* node : order) {
    n += !lifetimes.may_write(*node);
    lifetimes.run(*node);
  }
  return n;
}

bool schedule(Graph& g, PassContext& ctx) {
  std::vector<Node*> given;
  for (Node* n : g)
    if (n->op() != Op::Arg && n->op() != Op::Return) given.push_back(n);
  std::vector<Node*> best = given;
  i64 given_peak = peak_live_bytes(g, given), best_peak = given_peak;
  int best_late = late_readers(g, given);
  for (bool sink : {false, true}) {
    Ordering tried(g, given, /*hoist=*/true, sink);
    i64 peak = peak_live_bytes(g, tried.order);
    int late = late_readers(g, tried.order);
    if (std::tie(late, peak) >= std::tie(best_late, best_peak)) continue;
    best_late = late;
    best_peak = peak;
    best = std::move(tried.order);
  }
  if (ctx.debug >= 1)
    ctx.print(fmt::format("schedule: peak of temporaries {:.2f} -> {:.2f} MiB",
                          double(given_peak) / (1 << 20),
                          double(best_peak) / (1 << 20)));
  if (best == given) return false;
  for (Node* n : best) g.move_before(n, g.return_node());
  return true;
}

}  // namespace moec
