// Groups elementwise ops, and reductions along rows with what stands around
// them, into fusion nodes: one kernel each, whose inner values never reach
// memory.
//
// A group works on one space: the shape of its largest values, seen as rows
// by columns (the last axis). Inside stand values of that shape and values
// with one element per row; operands may also be smaller and broadcast. Nodes
// join the group of a producer, or of a node that reads the same value, if
// the shapes fit and no path leaves the group and comes back. A value that is
// read outside becomes a result of the fusion, so nothing is computed twice
// but what costs nothing (constants, iota, broadcasts).
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include <algorithm>

#include "ir/builder.h"
#include "ir/op_def.h"
#include "passes/pass.h"
#include "passes/topological.h"
#include "passes/unit_order.h"

namespace moec {
namespace {

constexpr int kMaxNodes = 48, kMaxOperands = 24;
// Places between two groups that may become one: what is far apart in the
// order would only live longer, and what remat made again would be kept.
constexpr int kMaxDistance = 100;

bool is_reduction(Op op) {
  return op == Op::Sum || op == Op::Mean || op == Op::ReduceMax ||
         op == Op::ReduceMin;
}

// Copied into every group that reads it.
bool is_free(const Node& n) {
  if (n.op() != Op::Broadcast)
    return n.op() == Op::Constant || n.op() == Op::Iota;
  Op from = n.operand(0).node->op();
  return from == Op::Arg || from == Op::Constant;
}

enum class Role : uint8_t {
  None,    // not fused
  Loop,    // one formula per element
  Row,     // reduces along the last axis
  Column,  // reduces along another axis: the only result of its group
  Leaf,    // reads memory in another order: its operands stay outside
};

Role row_role(const Node& n) {
  switch (n.op()) {
    case Op::Softmax:
    case Op::SoftmaxGrad:
    case Op::LogSumExp: return n.i("axis") == -1 ? Role::Row : Role::None;
    case Op::LayerNorm:
    case Op::RmsNorm:
    case Op::LayerNormGrad:
    case Op::RmsNormGrad:
    case Op::CrossEntropy:
    case Op::CrossEntropyGrad: return Role::Row;
    default: break;
  }
  if (!is_reduction(n.op()) || n.ints("axes").size() != 1) return Role::None;
  i64 last = n.operand(0).type().rank() - 1;
  return n.ints("axes")[0] == last ? Role::Row : Role::Column;
}

// Drops or adds a last axis of size 1.
bool is_row_reshape(const Node& n) {
  if (n.op() != Op::Reshape) return false;
  Dims from = n.operand(0).type().dims, to = n.type().dims;
  if (from.size() > to.size()) std::swap(from, to);
  return to.size() == from.size() + 1 && to.back() == 1 &&
         std::equal(from.begin(), from.end(), to.begin());
}

Role role_of(const Node& n, const FusionSet& on) {
  bool loops = on.has(Fusion::Elementwise), rows = on.has(Fusion::Reduction);
  if (has_trait(n, kElementwise)) return loops ? Role::Loop : Role::None;
  switch (n.op()) {
    case Op::Broadcast:
    case Op::Dropout:
    case Op::RandomUniform:
    case Op::RandomNormal: return loops ? Role::Loop : Role::None;
    case Op::Gather:
    case Op::Embedding: return loops ? Role::Leaf : Role::None;
    case Op::Reshape:
      return rows && is_row_reshape(n) ? Role::Loop : Role::None;
    default: return rows ? row_role(n) : Role::None;
  }
}

// The shape that the node works on.
const Dims& space_of(const Node& n, Role role) {
  return role == Role::Row || role == Role::Column ? n.operand(0).type().dims
                                                   : n.type().dims;
}

// One element per row of `space`, with or without the last axis.
bool is_rows_of(const Dims& d, const Dims& space) {
  if (space.empty() || space.back() == 1) return false;
  size_t outer = space.size() - 1;
  bool keeps = d.size() == space.size() && d.back() == 1;
  return (keeps || d.size() == outer) &&
         std::equal(space.begin(), space.end() - 1, d.begin());
}

struct Group {
  bool fusable = false;
  Dims space;
  bool reduces = false;  // has a Row or Column node
  bool column = false;
};

class Fuser {
 public:
  Fuser(Graph& g, const FusionSet& on) : g_(g), order_(g) {
    for (Node* n : g) {
      position_[n] = int(position_.size());
      Role r = is_free(*n) ? Role::None : role_of(*n, on);
      if (r == Role::None) {
        groups_.emplace_back();
        continue;
      }
      role_[n] = r;
      bool reduces = r == Role::Row || r == Role::Column;
      groups_.push_back({true, space_of(*n, r), reduces, r == Role::Column});
    }
  }

  bool run() {
    for (Node* n : g_) join_producers(n);
    for (Node* n : g_) join_siblings(n);
    bool changed = false;
    for (int id = 0; id < int(groups_.size()); ++id)
      if (groups_[id].fusable && worth_it(order_.nodes(id))) {
        build(id);
        changed = true;
      }
    if (changed) sort_topologically(g_);
    for (Node* n = g_.last(); n;) {
      Node* before = n->prev();
      if (is_free(*n) && n->users().empty()) g_.erase(n);
      n = before;
    }
    return changed;
  }

 private:
  // The number of the node's group, or -1.
  int group(const Node* n) const {
    int id = order_.unit(n);
    return id >= 0 && groups_[id].fusable ? id : -1;
  }

  // ---- growing groups

  void join_producers(Node* n) {
    if (!role_.contains(n)) return;
    // A leaf's operands are read in another order, so nothing is fused before
    // it.
    if (role_[n] == Role::Leaf) return;
    for (Value v : n->operands()) {
      int a = group(v.node), b = group(n);
      if (a < 0 || a == b || groups_[a].column || !is_aligned(*n, v) ||
          !shapes_fit(a, b, v))
        continue;
      if (groups_[b].column && groups_[a].reduces) continue;
      // What these read may not be stored beside.
      bool whole = groups_[b].column || role_[v.node] == Role::Leaf;
      if (!whole || only_read_by(a, b)) merge(a, b);
    }
  }

  void join_siblings(Node* n) {
    if (n->op() == Op::Arg || is_free(*n)) return;
    for (int r = 0; r < n->num_results(); ++r) {
      std::vector<Node*> readers;
      for (const Use& u : n->users())
        if (u.node->operand(u.operand).index == r && group(u.node) >= 0)
          readers.push_back(u.node);
      std::sort(readers.begin(), readers.end(), [&](Node* a, Node* b) {
        return position_.at(a) < position_.at(b);
      });
      for (size_t i = 1; i < readers.size(); ++i) {
        int a = group(readers[i - 1]), b = group(readers[i]);
        if (a == b || groups_[a].space != groups_[b].space ||
            groups_[a].space != n->type(r).dims || groups_[a].column ||
            groups_[b].column || role_.at(readers[i]) == Role::Leaf)
          continue;
        merge(a, b);
      }
    }
  }

  // Whether inside a group `n` would read `v` element by element or row by
  // row: a value per row must not be taken for one per column.
  bool is_aligned(const Node& n, Value v) const {
    Op from = v.node->op();
    if (v.index > 0 && (from == Op::LayerNormGrad || from == Op::RmsNormGrad))
      return false;
    Role role = role_.at(&n);
    const Dims &d = v.type().dims, &space = space_of(n, role);
    if (d == space || n.op() == Op::Reshape) return true;
    return role == Role::Loop && d.size() == space.size() &&
           is_rows_of(d, space);
  }

  // Whether group `b`, which reads `v` of group `a`, can take it in.
  bool shapes_fit(int a, int b, Value v) const {
    const Group &p = groups_[a], &c = groups_[b];
    if (p.space == c.space) return true;
    if (!p.reduces && is_rows_of(p.space, c.space))
      return c.reduces ? only_read_by(a, b) : false;
    return !c.reduces && p.reduces && is_rows_of(c.space, p.space) &&
           is_rows_of(v.type().dims, p.space);
  }

  // Every reader of group `a`'s values is in `a` or `b`.
  bool only_read_by(int a, int b) const {
    for (Node* n : order_.nodes(a))
      for (const Use& u : n->users())
        if (group(u.node) != a && group(u.node) != b) return false;
    return true;
  }

  int operand_count(int a, int b) const {
    absl::flat_hash_set<Value> in;
    for (int at : {a, b})
      for (Node* n : order_.nodes(at))
        for (Value v : n->operands())
          if (group(v.node) != a && group(v.node) != b && !is_free(*v.node))
            in.insert(v);
    return int(in.size());
  }

  bool merge(int a, int b) {
    if (order_.nodes(a).size() + order_.nodes(b).size() > kMaxNodes ||
        operand_count(a, b) > kMaxOperands || !order_.merge(a, b, kMaxDistance))
      return false;
    Group &to = groups_[a], &from = groups_[b];
    if (from.reduces && !to.reduces) to.space = from.space;
    to.reduces |= from.reduces;
    to.column |= from.column;
    from = {};
    return true;
  }

  // ---- building fusions

  // A lone op has a lowering of its own; but a large free operand would be
  // stored for it.
  bool worth_it(const std::vector<Node*>& nodes) const {
    if (nodes.size() != 1) return !nodes.empty();
    if (role_.at(nodes[0]) == Role::Leaf) return false;
    for (Value v : nodes[0]->operands())
      if (is_free(*v.node) && v.type().numel() > 1) return true;
    return false;
  }

  void sort(std::vector<Node*>& nodes) const {
    std::sort(nodes.begin(), nodes.end(), [&](Node* a, Node* b) {
      return position_.at(a) < position_.at(b);
    });
  }

  void build(int id) {
    std::vector<Node*> members = order_.nodes(id);
    sort(members);
    auto body = std::make_unique<Graph>("body");
    Builder inner(*body);
    absl::flat_hash_map<Value, Value> inside;
    std::vector<Value> operands;
    absl::flat_hash_set<std::string> names;
    auto add_operand = [&](Value v) {
      if (inside.contains(v)) return;
      std::string name;
      if (!v.node->names.empty()) name = v.node->names[v.index];
      if (name.empty() || names.contains(name))
        name = fmt::format("p{}", operands.size());
      names.insert(name);
      inside[v] = body->add_arg(name, v.type());
      operands.push_back(v);
    };
    std::vector<Node*> nodes(members);
    for (Node* n : members)
      for (Value v : n->operands()) add_outside(v, id, nodes, add_operand);
    sort(nodes);
    for (Node* n : nodes) {
      std::vector<Value> in;
      for (Value v : n->operands()) in.push_back(inside.at(v));
      Node* c = inner.node(n->op(), in, n->attr_list());
      c->names = n->names;
      for (int r = 0; r < n->num_results(); ++r)
        inside[n->result(r)] = c->result(r);
    }
    finish(id, members, std::move(body), operands, inside);
  }

  // What the group reads from outside: operands, and free nodes to copy.
  void add_outside(Value v, int id, std::vector<Node*>& nodes,
                   auto& add_operand) {
    if (group(v.node) == id) return;
    if (!is_free(*v.node)) return add_operand(v);
    if (std::find(nodes.begin(), nodes.end(), v.node) != nodes.end()) return;
    for (Value o : v.node->operands()) add_outside(o, id, nodes, add_operand);
    nodes.push_back(v.node);
  }

  void finish(int id, const std::vector<Node*>& members,
              std::unique_ptr<Graph> body, const std::vector<Value>& operands,
              absl::flat_hash_map<Value, Value>& inside) {
    std::vector<Value> results, outer;
    std::vector<std::string> names;
    for (Node* n : members)
      for (int r = 0; r < n->num_results(); ++r) {
        bool read = false;
        for (const Use& u : n->users())
          read |= u.node->operand(u.operand).index == r && group(u.node) != id;
        if (!read) continue;
        outer.push_back(n->result(r));
        results.push_back(inside.at(n->result(r)));
        names.push_back(n->names.empty() ? "" : n->names[r]);
      }
    body->set_outputs(results);
    Node* last = members.back();
    const Group& g = groups_[id];
    std::string kind = g.reduces && !g.column ? "row" : "loop";
    Node* fused = g_.create(Op::Fusion, operands, {{"kind", kind}}, last,
                            last->where, std::move(body));
    position_[fused] = position_.at(last);
    fused->names = names;
    for (size_t i = 0; i < outer.size(); ++i)
      replace_outside(outer[i], fused->result(int(i)), id);
    for (size_t i = members.size(); i-- > 0;) g_.erase(members[i]);
  }

  // Readers in the group itself go with it.
  void replace_outside(Value from, Value to, int id) {
    std::vector<Use> users(from.node->users().begin(),
                           from.node->users().end());
    for (const Use& u : users)
      if (u.node->operand(u.operand) == from && group(u.node) != id)
        u.node->set_operand(u.operand, to);
  }

  Graph& g_;
  UnitOrder order_;
  absl::flat_hash_map<const Node*, int> position_;
  absl::flat_hash_map<const Node*, Role> role_;
  std::vector<Group> groups_;  // by unit
};

}  // namespace

bool fuse_elementwise(Graph& g, PassContext& ctx) {
  return Fuser(g, ctx.options.fuse).run();
}

}  // namespace moec
