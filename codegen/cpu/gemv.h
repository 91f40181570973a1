// Products of few rows with a matrix of weights, Y[r][n] = scale * X[r] . W[n]:
// what decoding does. The weights are read once, as they are stored, in f32 or
// bf16; sums are f32. Every element is summed in the same order whatever the
// number of rows.
#pragma once
#include <cstdint>

#include "codegen/cpu/kernel.h"
#include "codegen/cpu/target.h"
#include "support/dtype.h"

namespace moec {

struct GemvSpec {
  int64_t rows = 1, n = 1, k = 1;  // X [rows, k], W [n, k], Y [rows, n]
  DType x = DType::F32, weights = DType::F32, y = DType::F32;
  double scale = 1;
};

// Buffers: X, W, Y.
KernelSpec gemv_kernel(const GemvSpec&, const Target&);

}  // namespace moec
