#include "models/moe/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/error.h"
#include "support/rng.h"

namespace moec::moe {

void check(const SamplingOptions& o) {
  if (!(o.temperature >= 0)) usage_error("temperature must be at least 0");
  if (o.top_k < 0) usage_error("top-k must be at least 0");
  if (!(o.top_p > 0 && o.top_p <= 1)) usage_error("top-p must be in (0, 1]");
  if (!(o.min_p >= 0 && o.min_p <= 1)) usage_error("min-p must be in [0, 1]");
  if (!(o.repetition_penalty > 0))
    usage_error("repetition-penalty must be more than 0");
}

int32_t sample(std::span<const float> logits, std::span<const int32_t> context,
               const SamplingOptions& o, int64_t row, int64_t position) {
  std::vector<double> score(logits.begin(), logits.end());
  if (o.repetition_penalty != 1) {
    std::vector<bool> seen(score.size());
    for (int32_t id : context) {
      if (id < 0 || size_t(id) >= seen.size() || seen[size_t(id)]) continue;
      seen[size_t(id)] = true;
      double& s = score[size_t(id)];
      s = s > 0 ? s / o.repetition_penalty : s * o.repetition_penalty;
    }
  }
  if (o.temperature == 0)
    return int32_t(std::max_element(score.begin(), score.end()) -
                   score.begin());
  std::vector<int32_t> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return score[size_t(a)] > score[size_t(b)];
  });
  size_t keep = order.size();
  if (o.top_k > 0) keep = std::min(keep, size_t(o.top_k));
  double top = score[size_t(order[0])];
  std::vector<double> p(keep);
  for (size_t i = 0; i < keep; ++i)
    p[i] = std::exp((score[size_t(order[i])] - top) / o.temperature);
  double total = std::accumulate(p.begin(), p.end(), 0.0);
  size_t n = 0;
  for (double sum = 0; n < keep && sum < o.top_p * total; ++n) sum += p[n];
  while (n > 1 && p[n - 1] < o.min_p * p[0]) --n;
  total = std::accumulate(p.begin(), p.begin() + std::ptrdiff_t(n), 0.0);
  double u =
      uniform_from_word<double>(random_word(o.seed, uint64_t(row), position)) *
      total;
  for (size_t i = 0; i < n; ++i)
    if ((u -= p[i]) < 0) return order[i];
  return order[n - 1];
}

}  // namespace moec::moe
