// The reference: runs a graph node by node in double. Each result is rounded
// to its dtype after its op, so f32 graphs see f32 values with double
// accumulation inside an op; Precision::F64 leaves floating results
// unrounded, which is what finite differences need.
#pragma once
#include <functional>
#include <vector>

#include "ir/graph.h"

namespace moec {

struct Tensor {
  Type type;
  std::vector<double> data;  // row-major; integers and bools as their value

  static Tensor zeros(Type t) {
    auto n = size_t(t.numel());
    return {std::move(t), std::vector<double>(n)};
  }
};

enum class Precision { Typed, F64 };

// Hears of each node's results, in order.
using Observer =
    std::function<void(const Node&, absl::Span<const Tensor> results)>;

// One tensor per argument, in order; one per output. Throws UserError if a
// type differs.
std::vector<Tensor> interpret(const Graph&, absl::Span<const Tensor> args,
                              Precision = Precision::Typed,
                              const Observer& = {});
// Evaluates one node.
std::vector<Tensor> interpret_node(const Node&,
                                   absl::Span<const Tensor* const> in,
                                   Precision = Precision::Typed);
// Rounds every element to the tensor's dtype.
void round_to_dtype(Tensor&);

}  // namespace moec
