// What pass tests share: random inputs, and comparing graphs by what they
// compute.
#pragma once
#include <string_view>
#include <vector>

#include "ir/interpreter.h"
#include "passes/pass_manager.h"

namespace moec {

// One per argument, from the seed: floats normal, integers in [0, limit),
// u32 any, bools either.
std::vector<Tensor> random_inputs(const Graph&, uint64_t seed, i64 limit = 4);

// Largest difference, relative to the larger of 1 and the values' size.
double max_difference(const std::vector<Tensor>&, const std::vector<Tensor>&);

// Parses the text, runs the passes on a copy, and returns how far the results
// differ in f64 on random inputs.
double change_by(std::string_view text, const std::vector<std::string>& passes,
                 const PipelineOptions& = {}, i64 limit = 4);

// How often the op is in the graph.
int count_ops(const Graph&, Op);

}  // namespace moec
