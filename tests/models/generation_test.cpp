// Decoding with caches against the full forward; batches; cuts.
#include "models/moe/generation.h"

#include <algorithm>

#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

TEST_CASE("decoding with a cache equals the full forward at every position") {
  for (auto set : variants()) {
    // Long enough for a cache to grow, past 16 and past 32 entries.
    set.push_back("train.seq=40");
    CAPTURE(set);
    SmallModel m(small_config(set));
    Generator g(m.engine, m.model, m.state);
    auto ids = random_ids(40, 11, 5);
    auto full = m.logits(ids, 1);
    for (size_t n = 5; n <= 40; ++n) {
      auto next = g.next({{ids.begin(), ids.begin() + i64(n)}});
      std::span<const float> expected(full.data() + (n - 1) * 11, 11);
      CHECK(difference(expected, next) < 1e-5);
    }
  }
}

TEST_CASE("a batch of ragged prompts equals each alone") {
  for (auto& set : variants()) {
    CAPTURE(set);
    SmallModel m(small_config(set));
    Generator g(m.engine, m.model, m.state);
    GenerateOptions o;
    o.max_tokens = 12;  // beyond train.seq = 6
    o.sampling.temperature = 0;
    std::vector<std::vector<int32_t>> prompts = {
        {1, 2, 3, 4, 5, 6, 7, 8, 9}, {4}, {10, 0, 3}};
    auto together = g.generate(prompts, o);
    for (size_t r = 0; r < prompts.size(); ++r) {
      CHECK(together[r].size() == 12);
      CHECK(g.generate({prompts[r]}, o)[0] == together[r]);
    }
  }
}

TEST_CASE("stop tokens, the sink and the seed") {
  SmallModel m(small_config());
  Generator g(m.engine, m.model, m.state);
  GenerateOptions o;
  o.max_tokens = 20;
  o.sampling.seed = 4;
  auto all = g.generate({{1}}, o)[0];
  CHECK(all == g.generate({{1}}, o)[0]);
  o.sampling.seed = 5;
  CHECK(all != g.generate({{1}}, o)[0]);
  o.sampling.seed = 4;
  o.stop = {all[3]};
  auto cut = g.generate({{1}}, o)[0];
  CHECK(cut.size() <= 3);
  CHECK(std::equal(cut.begin(), cut.end(), all.begin()));
  o.stop = {};
  int seen = 0;
  g.generate({{1}}, o, [&](i64, int32_t) { return ++seen < 5; });
  CHECK(seen == 5);
}

TEST_CASE("with eval_capacity generation equals the forward of that length") {
  SmallModel m(small_config({"moe.capacity=0.5", "moe.eval_capacity=true"}));
  Generator g(m.engine, m.model, m.state);
  auto ids = random_ids(6, 11, 5);
  auto next = g.next({ids});
  auto full = m.logits(ids, 1);
  CHECK(difference(std::span<const float>(full).subspan(55, 11), next) < 1e-5);
}

}  // namespace
}  // namespace moec::moe
