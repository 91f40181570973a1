#include "models/moe/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "support/rng.h"

namespace moec::moe {

double learning_rate(const TrainConfig& t, i64 step) {
  if (step < t.warmup) return t.lr * double(step + 1) / double(t.warmup);
  double left = double(std::max<i64>(t.steps - t.warmup, 1));
  double at = std::min(double(step - t.warmup) / left, 1.0);
  if (t.schedule == "cosine")
    return t.min_lr +
           (t.lr - t.min_lr) * (1 + std::cos(std::numbers::pi * at)) / 2;
  if (t.schedule == "trapezoid") {
    double flat = 0.8 * double(t.steps);
    if (double(step) <= flat) return t.lr;
    double down = (double(step) - flat) / std::max(double(t.steps) - flat, 1.0);
    return t.lr + (t.min_lr - t.lr) * std::min(down, 1.0);
  }
  return t.lr;
}

std::array<uint32_t, 2> step_key(uint64_t seed, i64 step, i64 part) {
  auto s = uint64_t(step);
  auto w = philox4x32(
      seed, {uint32_t(s), uint32_t(s >> 32), uint32_t(part), 0x6b657953u});
  return {w[0], w[1]};
}

}  // namespace moec::moe
