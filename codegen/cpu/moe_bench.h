// Figures of the expert kernels on one thread.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "codegen/cpu/kernel_bench.h"

namespace moec {

struct MoeShape {
  int64_t tokens, dim, hidden, experts, top_k;
};

std::string moe_name(const MoeShape&);  // "(2048,256,512,8,2)"

// The shapes that are compared with others, odd ones, and those that show how
// cost grows with experts and tokens.
std::vector<MoeShape> bench_moe_shapes();
std::vector<MoeShape> bench_moe_growth();

// Forward, backward, both, and if `dense` the dense layer of as many active
// weights, as the standard passes compile it.
std::vector<BenchRow> bench_moe(KernelLibrary&, const MoeShape&, bool bf16,
                                double seconds, bool dense);

}  // namespace moec
