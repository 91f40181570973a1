// Figures of the loss, the optimizer and the small kernels around the matrix
// products, on one thread.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codegen/cpu/kernel_bench.h"
#include "ir/graph.h"

namespace moec {

// One operation as a graph, and what bounds it: the FMA peak if `flops` is not
// 0, else a stream.
struct OpShape {
  std::string name;
  std::shared_ptr<Graph> graph;
  double flops = 0;
  StreamPattern stream = {};
  int64_t ids = 1;  // integers among the operands are below it
};

std::vector<OpShape> bench_op_shapes(bool bf16);

BenchRow bench_op(KernelLibrary&, const OpShape&, bool bf16, double seconds);

}  // namespace moec
