// Figures of the matmul family on one thread, as shares of the FMA peak
// measured between the runs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "codegen/cpu/kernel_bench.h"

namespace moec {

struct MatmulShape {
  int64_t m, n, k;
  bool trans_a = false, trans_b = false;
  int64_t batch = 1;
  int64_t experts = 0;  // > 0: rows (or, with trans_a, the reduction) grouped
  bool bf16 = false;
};

std::string matmul_name(const MatmulShape&);

// The shapes `moec bench ops` shows.
std::vector<MatmulShape> bench_matmul_shapes(bool bf16);

// Spends about `seconds` on the shape.
BenchRow bench_matmul(KernelLibrary&, const MatmulShape&, double seconds);

}  // namespace moec
