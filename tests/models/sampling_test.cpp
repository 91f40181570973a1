// Sampling: filters, ties, frequencies; the learning rate.
#include "models/moe/sampling.h"

#include <cmath>
#include <map>
#include <vector>

#include "models/moe/schedule.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

std::map<int32_t, int> draw(const std::vector<float>& logits, SamplingOptions o,
                            int n = 4000, std::vector<int32_t> context = {}) {
  std::map<int32_t, int> count;
  for (int i = 0; i < n; ++i) ++count[sample(logits, context, o, 0, i)];
  return count;
}

TEST_CASE("greedy takes the largest, ties the lowest id") {
  CHECK(sample(std::vector<float>{1, 3, 3, 2}, {}, {.temperature = 0}, 0, 0) ==
        1);
}

TEST_CASE("frequencies follow the softmax") {
  std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};
  auto c = draw(logits, {});
  // Four standard errors of a share at 4000 draws are at most 0.032.
  CHECK(c[0] / 4000.0 == doctest::Approx(0.125).epsilon(0.26));
  CHECK(std::abs(c[1] / 4000.0 - 0.25) < 0.032);
  CHECK(std::abs(c[2] / 4000.0 - 0.625) < 0.032);
}

TEST_CASE("filters keep what they say") {
  std::vector<float> logits = {std::log(1.0f), std::log(2.0f), std::log(4.0f),
                               std::log(3.0f)};
  CHECK(draw(logits, {.top_k = 2}).size() == 2);
  CHECK(draw(logits, {.top_k = 2}).contains(3));
  CHECK(draw(logits, {.top_p = 0.39}).size() == 1);
  CHECK(draw(logits, {.top_p = 0.6}).size() == 2);
  CHECK(draw(logits, {.min_p = 0.6}).size() == 2);
  auto penal = draw(logits, {.top_k = 1, .repetition_penalty = 3}, 10, {2});
  CHECK(penal.begin()->first == 3);
}

TEST_CASE("bad options are usage errors") {
  CHECK_THROWS_AS(check({.temperature = -1}), UsageError);
  CHECK_THROWS_AS(check({.top_p = 0}), UsageError);
  CHECK_THROWS_AS(check({.min_p = 2}), UsageError);
}

TEST_CASE("learning rate schedules") {
  TrainConfig t;
  t.lr = 1;
  t.min_lr = 0.1;
  t.warmup = 10;
  t.steps = 110;
  CHECK(learning_rate(t, 0) == doctest::Approx(0.1));
  CHECK(learning_rate(t, 50) == 1);
  t.schedule = "cosine";
  CHECK(learning_rate(t, 10) == doctest::Approx(1));
  CHECK(learning_rate(t, 60) == doctest::Approx(0.55));
  CHECK(learning_rate(t, 110) == doctest::Approx(0.1));
  t.schedule = "trapezoid";
  CHECK(learning_rate(t, 80) == 1);
  CHECK(learning_rate(t, 99) == doctest::Approx(0.55));
}

}  // namespace
}  // namespace moec::moe
