#include "models/moe/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
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

namespace {

// Ids by descending score, equal ones by id; ordered only as far as they are
// looked at.
class Ranking {
 public:
  explicit Ranking(std::span<const double> score)
      : score_(score), order_(score.size()) {
    std::iota(order_.begin(), order_.end(), 0);
  }
  int32_t operator[](size_t i) {
    while (i >= ordered_) extend();
    return order_[i];
  }

 private:
  void extend() {
    auto before = [&](int32_t a, int32_t b) {
      double x = score_[size_t(a)], y = score_[size_t(b)];
      return x != y ? x > y : a < b;
    };
    size_t end = std::min(order_.size(), std::max<size_t>(32, 4 * ordered_));
    auto at = [&](size_t i) { return order_.begin() + std::ptrdiff_t(i); };
    if (end < order_.size())
      std::nth_element(at(ordered_), at(end), order_.end(), before);
    std::sort(at(ordered_), at(end), before);
    ordered_ = end;
  }

  std::span<const double> score_;
  std::vector<int32_t> order_;
  size_t ordered_ = 0;
};

void penalize(std::span<double> score, std::span<const int32_t> context,
              double penalty) {
  std::vector<bool> seen(score.size());
  for (int32_t id : context) {
    if (id < 0 || size_t(id) >= seen.size() || seen[size_t(id)]) continue;
    seen[size_t(id)] = true;
    double& s = score[size_t(id)];
    s = s > 0 ? s / penalty : s * penalty;
  }
}

}  // namespace

int32_t sample(std::span<const float> logits, std::span<const int32_t> context,
               const SamplingOptions& o, int64_t row, int64_t position) {
  std::vector<double> score(logits.begin(), logits.end());
  for (double& s : score)
    if (std::isnan(s)) s = -std::numeric_limits<double>::infinity();
  if (o.repetition_penalty != 1) penalize(score, context, o.repetition_penalty);
  auto best = std::max_element(score.begin(), score.end());
  if (o.temperature == 0 || std::isinf(*best))
    return int32_t(best - score.begin());

  // What is e^-50 as likely as the best is never taken.
  const double top = *best;
  auto weight = [&](double s) {
    double x = (s - top) / o.temperature;
    return x < -50 ? 0 : std::exp(x);
  };
  Ranking ranking(score);
  auto p = [&](size_t i) { return weight(score[size_t(ranking[i])]); };
  size_t keep = score.size();
  if (o.top_k > 0) keep = std::min(keep, size_t(o.top_k));
  double total = 0;
  for (size_t i = 0; i < keep; ++i)
    total += keep < score.size() ? p(i) : weight(score[i]);
  if (o.top_p < 1 || o.min_p > 0) {
    const double goal = o.top_p * total;
    double sum = 0;
    size_t n = 0;
    for (; n < keep && (n == 0 || (sum < goal && p(n) >= o.min_p)); ++n)
      sum += p(n);
    keep = n, total = sum;
  }
  double u =
      uniform_from_word<double>(random_word(o.seed, uint64_t(row), position)) *
      total;
  for (size_t i = 0; i < keep; ++i)
    if ((u -= p(i)) < 0) return ranking[i];
  return ranking[0];
}

}  // namespace moec::moe
