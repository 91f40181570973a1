#include <absl/container/flat_hash_set.h>

#include "ir/op_def.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

bool swaps(const Node& n) {
  return n.num_operands() == 2 && has_trait(n, kCommutative);
}

struct SameHash {
  size_t operator()(const Node* n) const {
    absl::Hash<Value> hash_value;
    size_t operands = 0;
    for (Value v : n->operands())
      operands = (swaps(*n) ? operands : operands * 31) + hash_value(v);
    size_t attrs = 0;
    for (const AttrValue& a : n->attrs())
      attrs = attrs * 31 +
              std::visit([](const auto& v) { return absl::HashOf(v); }, a);
    return absl::HashOf(n->op(), operands, attrs);
  }
};

struct SameValue {
  bool operator()(const Node* a, const Node* b) const {
    if (a->op() != b->op() || a->attrs() != b->attrs()) return false;
    if (a->operands() == b->operands()) return true;
    return swaps(*a) && b->num_operands() == 2 &&
           a->operand(0) == b->operand(1) && a->operand(1) == b->operand(0);
  }
};

}  // namespace

bool cse(Graph& g, PassContext&) {
  absl::flat_hash_set<Node*, SameHash, SameValue> seen;
  bool changed = false;
  for (Node* n : g) {
    // Bodies are made by the last fusions, after which nothing is equal.
    if (has_trait(*n, kImpure) || n->body()) continue;
    auto [at, is_new] = seen.insert(n);
    if (is_new) continue;
    Node* first = *at;
    take_names(*n, *first);
    for (int i = 0; i < n->num_results(); ++i)
      g.replace_all_uses(n->result(i), first->result(i));
    g.erase(n);
    changed = true;
  }
  return changed;
}

}  // namespace moec
