// The layers that models are made of. Weights of matrices are stored
// [out, in], as Hugging Face checkpoints do.
#pragma once
#include "frontend/ops.h"
#include "frontend/parameters.h"
#include "frontend/trace.h"

namespace moec::dsl {

// y = x W^T (+ b): [..., in] -> [..., out].
struct Linear {
  Linear() = default;
  Linear(At at, i64 in, i64 out, bool with_bias, Init init = normal(0.02));
  Tensor operator()(Operand x) const;

  Parameter weight, bias;  // [out, in], [out] or none
};

// ids [...] -> [..., width].
struct Embedding {
  Embedding() = default;
  Embedding(At at, i64 rows, i64 width, Init init = normal(0.02));
  Tensor operator()(Operand ids) const;

  Parameter weight;  // [rows, width]
};

// RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * weight.
struct RmsNorm {
  RmsNorm() = default;
  RmsNorm(At at, i64 width, double eps = 1e-6);
  Tensor operator()(Operand x) const;

  Parameter weight;  // [width]
  double eps = 0;
};

// LayerNorm (Ba et al. 2016) over the last axis.
struct LayerNorm {
  LayerNorm() = default;
  LayerNorm(At at, i64 width, double eps = 1e-6);
  Tensor operator()(Operand x) const;

  Parameter weight, bias;  // [width]
  double eps = 0;
};

// Inverted dropout; the identity outside training.
struct Dropout {
  double p = 0;
  Tensor operator()(Operand x) const;
};

}  // namespace moec::dsl
