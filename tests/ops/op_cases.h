// One row per op and variant. Every test of ops walks this table: gradients
// against finite differences, text round trips, decompositions, and each
// backend against the interpreter.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ir/builder.h"
#include "ir/interpreter.h"

namespace moec {

// How an argument's elements are drawn.
struct OpInput {
  Type type;
  // Floats: a shuffled even grid over (low, high), so that all elements differ
  // and none is near 0. Integers and bools: uniform in [low, high].
  double low = -1, high = 1;
  std::vector<double> values = {};  // if not empty: these, as they are
  bool stays_f32 = false;           // in a bf16 graph: statistics, weights
};

struct OpCase {
  std::string name;  // "matmul/transpose_b": the op, then the variant
  Op op;
  std::vector<OpInput> inputs;
  // Adds the nodes under test; returns the graph's results.
  std::function<Values(Builder&, absl::Span<const Value> in)> build;
  // Largest |difference| of an f32 backend from the interpreter, per largest
  // |value| of that result or 1.
  double tolerance = 2e-6;
  // Whether the gradient of the float arguments can be compared with finite
  // differences.
  bool differentiable = true;
};

const std::vector<OpCase>& op_cases();

// The same case on bf16 data. Ops of the optimizer have none.
bool runs_in_bf16(const OpCase&);
OpCase in_bf16(OpCase);

// A function named after the case, with arguments x0, x1, ...
std::unique_ptr<Graph> build_graph(const OpCase&);

// Elements are exact in their dtype.
Tensor random_tensor(const OpInput&, uint64_t seed);
std::vector<Tensor> random_inputs(const OpCase&, uint64_t seed = 1);

// Empty if they agree: types are equal, integers and bools exactly, floats
// within `tolerance` of the largest finite |want| or 1; infinities and NaNs
// stand at the same places. Else says where they differ most.
std::string difference(const Tensor& got, const Tensor& want, double tolerance);

}  // namespace moec
