// Arithmetic of a model, counted from its config.
#pragma once
#include "frontend/parameters.h"
#include "models/moe/config.h"

namespace moec::moe {

// Weights that one token meets: attention projections, router, chosen and
// shared experts, dense feed-forwards and the output head; no biases, norms
// or embedding tables.
double active_weights(const Config& config);
// Parameters that a token uses: all but those of the experts not chosen.
i64 active_parameters(const Config& config, const dsl::Parameters& params);
// FLOPs of a training step per token: 6 * active weights, and
// 3 * heads * (d_head + d_value) * seq a layer for causal attention.
double train_flops_per_token(const Config& config);

}  // namespace moec::moe
