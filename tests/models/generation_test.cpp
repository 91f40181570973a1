// Decoding with caches against the full forward; batches; cuts.
#include "models/moe/generation.h"

#include <algorithm>
#include <cstring>

#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

// Those of every test of models, and what matters for caches alone.
std::vector<std::vector<std::string>> cache_variants() {
  auto all = variants();
  all.push_back({"model.n_heads=6", "model.n_kv_heads=2", "model.d_head=10",
                 "model.d_value=18", "model.window=9", "model.ffn=silu",
                 "model.d_model=24", "model.tied=true"});
  all.push_back({"moe.experts=0", "moe.top_k=0", "model.n_heads=4",
                 "model.d_head=4", "model.bias=true"});
  return all;
}

// Decodes from 5 tokens to `count`, past the ends of caches.
void check_positions(SmallModel& m, i64 count) {
  Generator g(m.engine, m.model, m.state);
  i64 vocab = m.config.model.vocab;
  auto ids = random_ids(count, vocab, 5);
  auto full = m.logits(ids, 1);
  for (i64 n = 5; n <= count; ++n) {
    CAPTURE(n);
    auto next = g.next({{ids.begin(), ids.begin() + n}});
    auto expected = std::span<const float>(full).subspan(
        size_t((n - 1) * vocab), size_t(vocab));
    CHECK(difference(expected, next) < 1e-5);
  }
}

TEST_CASE("decoding with a cache equals the full forward at every position") {
  for (auto set : cache_variants()) {
    set.push_back("train.seq=40");
    CAPTURE(set);
    SmallModel m(small_config(set));
    check_positions(m, 40);
  }
}

TEST_CASE("compiled decoding equals the full forward at every position") {
  for (auto set : cache_variants()) {
    set.push_back("train.seq=20");
    CAPTURE(set);
    SmallModel m(small_config(set), "cpu");
    check_positions(m, 20);
  }
}

TEST_CASE("weights stored in bf16 give what their values in f32 give") {
  auto config = small_config({"train.seq=20", "model.tied=true"});
  SmallModel wide(config, "cpu"), half(config, "cpu");
  half.model.store_weights(DType::BF16);
  State stored;
  for (auto& p : half.model.parameters().all()) {
    auto from = wide.state.f32(p.name);
    TensorSpec spec{p.name,
                    p.stored,
                    {p.dims.begin(), p.dims.end()},
                    Type{p.stored, p.dims}.bytes()};
    auto to = stored.add(spec);
    for (size_t i = 0; i < from.size(); ++i) {
      if (p.stored == DType::F32) {
        std::memcpy(to.data() + 4 * i, &from[i], 4);
        continue;
      }
      uint16_t bits = f32_to_bf16(from[i]);
      from[i] = bf16_to_f32(bits);
      std::memcpy(to.data() + 2 * i, &bits, 2);
    }
  }
  Generator a(wide.engine, wide.model, wide.state);
  Generator b(half.engine, half.model, stored);
  auto ids = random_ids(20, 11, 5);
  for (size_t n = 5; n <= 20; ++n) {
    std::vector<std::vector<int32_t>> text = {
        {ids.begin(), ids.begin() + i64(n)}};
    auto want = a.next(text);
    CHECK(difference(want, b.next(text)) < 1e-5);
  }
}

TEST_CASE("a batch of ragged prompts equals each alone") {
  for (auto& set : cache_variants()) {
    CAPTURE(set);
    SmallModel m(small_config(set), "cpu");
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
