// What changes from step to step.
#pragma once
#include <array>
#include <cstdint>

#include "models/moe/config.h"

namespace moec::moe {

// Learning rate of step 0, 1, ...: linear warm-up over train.warmup steps,
// then constant; a cosine to min_lr at the last step; or flat until 80 % of
// the steps and linear to min_lr (trapezoid).
double learning_rate(const TrainConfig& t, i64 step);

// The key of a step's (and of its part's) dropout and noise.
std::array<uint32_t, 2> step_key(uint64_t seed, i64 step, i64 part);

}  // namespace moec::moe
