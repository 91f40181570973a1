// A topological order of units of nodes that stays one while units merge:
// what fusing passes need to know that no cycle arises.
#pragma once
#include <absl/container/flat_hash_map.h>

#include <vector>

#include "ir/graph.h"

namespace moec {

class UnitOrder {
 public:
  // Every node is a unit of its own, numbered by its place in the list.
  explicit UnitOrder(const Graph&);

  // -1 for a node made since.
  int unit(const Node* n) const {
    auto at = unit_of_.find(n);
    return at == unit_of_.end() ? -1 : at->second;
  }
  // Empty for a unit that was merged into another.
  const std::vector<Node*>& nodes(int unit) const { return nodes_[unit]; }

  // Makes `b` part of `a`. Refuses, and changes nothing, if something outside
  // depends on one and feeds the other, or if more than `window` units stand
  // between them in the order. Linear in the operands of those units.
  bool merge(int a, int b, int window);

 private:
  absl::flat_hash_map<const Node*, int> unit_of_;
  std::vector<std::vector<Node*>> nodes_;  // by unit
  std::vector<int> order_;                 // units; -1: an empty place
  std::vector<int> place_;                 // in order_, by unit
};

}  // namespace moec
