// Whether two forms of a model, say fused and unfused, train the same.
#pragma once
#include <functional>
#include <span>
#include <string>

#include "models/moe/engine.h"

namespace moec::moe {

struct CheckOptions {
  i64 points = 10, every = 2;  // compares before step 0, every, 2 every, ...
  i64 free_steps = 0;          // then trains both, each on its own weights
  bool control = false;        // and `a` once more, from weights an ulp off
};

struct FusionCheck {
  // From the same weights, the largest over the points: |Δ| / |loss|, and of
  // each parameter ‖Δ‖ / ‖g‖.
  double loss = 0, grad = 0;
  std::string grad_of;
  // Points where some token, its experts nearly tied, has others in `b`, and
  // how many tokens in all layers and points; the largest gradient difference
  // of the other points.
  i64 moved_points = 0, moved_tokens = 0;
  double settled_grad = 0;
  // Of each on its own: the largest |Δ| / |loss| of a step.
  double free_loss = 0;
  double control_loss = 0;  // the same of `a` from weights an ulp off
  // Steps until these pass 1e-5: a token went elsewhere.
  i64 free_alike = 0, control_alike = 0;
  double first_loss = 0, last_loss = 0;  // of `a`
};

// Trains `a` with the config's learning rate on the text that moec carries,
// its bytes modulo the vocabulary; `b` follows. Dropout and noise are on in
// the training steps, as the config says, and off in the comparisons.
FusionCheck check_fusion(const Config& config, const EngineOptions& a,
                         const EngineOptions& b, const CheckOptions& options);

// The largest ‖a - b‖ / ‖b‖ of gradients, by parameter; a NaN anywhere is the
// largest. Where ‖b‖ is less than a thousandth of the norm of all together,
// that stands for it: the gradient of a key's bias, say, is exactly 0.
struct GradientDifference {
  double value = 0;
  std::string of;
};
using GradientOf = std::function<std::span<const float>(const std::string&)>;
GradientDifference gradient_difference(const dsl::Parameters& params,
                                       const GradientOf& a,
                                       const GradientOf& b);

}  // namespace moec::moe
