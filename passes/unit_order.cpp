// As in Pearce and Kelly, "A Dynamic Topological Sort Algorithm for Directed
// Acyclic Graphs", JEA 2006: only what stands between the two is reordered.
#include "passes/unit_order.h"

#include <absl/container/flat_hash_set.h>

namespace moec {

UnitOrder::UnitOrder(const Graph& g) {
  for (Node* n : g) {
    int unit = int(nodes_.size());
    unit_of_[n] = unit;
    nodes_.push_back({n});
    order_.push_back(unit);
    place_.push_back(unit);
  }
}

bool UnitOrder::merge(int a, int b, int window) {
  int first = place_[a] < place_[b] ? a : b, second = first == a ? b : a;
  int begin = place_[first], end = place_[second];
  if (end - begin > window) return false;
  // Units between the two that depend on the first have to come after.
  absl::flat_hash_set<int> after{first};
  auto depends = [&](int unit) {
    for (Node* n : nodes_[unit])
      for (Value v : n->operands())
        if (after.contains(unit_of_.at(v.node))) return true;
    return false;
  };
  std::vector<int> before_them, after_them;
  for (int at = begin + 1; at < end; ++at) {
    int unit = order_[at];
    if (unit < 0) continue;
    bool late = depends(unit);
    if (late) after.insert(unit);
    (late ? after_them : before_them).push_back(unit);
  }
  after.erase(first);
  if (depends(second)) return false;

  for (Node* n : nodes_[b]) unit_of_[n] = a;
  nodes_[a].insert(nodes_[a].end(), nodes_[b].begin(), nodes_[b].end());
  nodes_[b].clear();
  int at = begin;
  auto put = [&](int unit) {
    order_[at] = unit;
    if (unit >= 0) place_[unit] = at;
    ++at;
  };
  for (int unit : before_them) put(unit);
  put(a);
  for (int unit : after_them) put(unit);
  while (at <= end) put(-1);
  return true;
}

}  // namespace moec
