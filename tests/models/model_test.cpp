// The transformer: sizes, causality, gates, losses.
#include <algorithm>
#include <cmath>

#include "ir/text.h"
#include "ir/verifier.h"
#include "models/moe/router.h"
#include "passes/pass_manager.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

void check_reads_back(const Graph& g) {
  auto text = print(g);
  auto back = parse_graph(text);
  CHECK(print(*back) == text);
  CHECK(structural_key(*back) == structural_key(g));
}

// Every function of the config at every pass of the pipeline.
void check_stages(const Config& config) {
  Transformer model(config);
  auto& t = config.train;
  Engine engine(engine_options(config));
  for (auto& name : function_names(model)) {
    CAPTURE(name);
    auto g = make_function(model, name, t.batch, t.seq);
    PassContext context;
    context.options = engine.pipeline();
    RunOptions run;
    int seen = 0;
    run.dump = [&](int, std::string_view pass, const Graph& at) {
      CAPTURE(pass);
      verify(at);
      check_reads_back(at);
      ++seen;
    };
    run_pipeline(*g, context, run);
    CHECK(seen > 15);
  }
}

TEST_CASE("every stage of every function of every variant reads back") {
  for (auto& set : variants()) {
    CAPTURE(set);
    check_stages(small_config(set));
    if (long_tests())
      for (auto more :
           {"compile.fuse=off", "compile.moe=grouped", "compile.moe=dense",
            "train.dtype=bf16", "compile.remat=true", "train.accumulate=2"}) {
        CAPTURE(more);
        auto both = set;
        both.push_back(more);
        check_stages(small_config(both));
      }
  }
}

TEST_CASE("every stage of the example configs, and of the peers', reads back") {
  if (!long_tests()) {
    skip_test("takes a while; MOEC_TEST_LONG=1 runs it");
    return;
  }
  namespace fs = std::filesystem;
  int found = 0;
  for (fs::path folder : {"examples/seeds", "../shared/peers/configs"}) {
    if (!fs::exists(folder)) continue;
    for (auto& file : fs::directory_iterator(folder)) {
      if (file.path().extension() != ".toml") continue;
      CAPTURE(file.path());
      auto config = load_config(file.path());
      if (config.model.vocab == 0) config.model.vocab = 65;
      check_stages(config);
      ++found;
    }
  }
  CHECK(found >= 4);
}

TEST_CASE("a later token changes no earlier logits, capacity on") {
  for (auto set : variants()) {
    set.push_back("moe.eval_capacity=true");
    CAPTURE(set);
    SmallModel m(small_config(set));
    auto tokens = random_ids(12, 11, 3);
    auto before = m.logits(tokens, 2);
    for (i64 t : {1, 4, 5}) {
      auto changed = tokens;
      // In row 0, so that it stands before all of row 1 in memory.
      changed[size_t(t)] = (changed[size_t(t)] + 5) % 11;
      auto after = m.logits(changed, 2);
      CHECK(std::equal(before.begin(), before.begin() + t * 11, after.begin()));
      CHECK(!std::equal(before.begin() + t * 11, before.begin() + 66,
                        after.begin() + t * 11));
      if (m.config.moe.capacity == 0 || m.config.moe.capacity_scope == "row")
        CHECK(
            std::equal(before.begin() + 66, before.end(), after.begin() + 66));
      else
        CHECK(std::equal(before.begin() + 66, before.begin() + 66 + t * 11,
                         after.begin() + 66));
    }
  }
}

TEST_CASE("encode and head are the halves of logits") {
  for (auto& set : variants()) {
    CAPTURE(set);
    SmallModel m(small_config(set));
    auto tokens = random_ids(12, 11, 3);
    auto encode = m.function("encode", 2, 6), head = m.function("head", 2, 6);
    std::ranges::copy(tokens, encode.input<int32_t>("tokens").begin());
    encode.run();
    std::ranges::copy(encode.output<float>("features"),
                      head.input<float>("features").begin());
    head.run();
    auto logits = head.output<float>("logits");
    CHECK(difference(m.logits(tokens, 2), logits) < 1e-6);
  }
}

TEST_CASE("softmax of the chosen equals the chosen of softmax renormalised") {
  auto tokens = random_ids(12, 11, 3);
  SmallModel a(small_config({"moe.gate=topk_softmax"}));
  SmallModel b(small_config({"moe.gate=softmax_topk_renorm"}));
  SmallModel c(small_config({"moe.gate=softmax_topk"}));
  auto la = a.logits(tokens, 2);
  CHECK(difference(la, b.logits(tokens, 2)) < 1e-5);
  CHECK(difference(la, c.logits(tokens, 2)) > 1e-3);
}

// Renumbers the experts of every layer.
void permute_experts(SmallModel& m, const std::vector<i64>& order) {
  for (auto& p : m.model.parameters().all()) {
    bool stack = p.name.find(".experts.") != p.name.npos;
    bool router = p.name.find(".router.") != p.name.npos;
    if (!stack && !router) continue;
    auto values = m.state.f32(p.name);
    std::vector<float> old(values.begin(), values.end());
    size_t row = old.size() / order.size();
    for (size_t e = 0; e < order.size(); ++e)
      std::copy_n(old.begin() + std::ptrdiff_t(size_t(order[e]) * row), row,
                  values.begin() + std::ptrdiff_t(e * row));
  }
}

TEST_CASE("the numbering of experts changes nothing") {
  for (auto& set : variants()) {
    CAPTURE(set);
    SmallModel a(small_config(set)), b(small_config(set));
    if (a.config.num_moe_layers()) permute_experts(b, {2, 0, 3, 1});
    auto tokens = random_ids(12, 11, 3);
    CHECK(difference(a.logits(tokens, 2), b.logits(tokens, 2)) < 1e-5);
  }
}

struct LossRun {
  double loss, ce;
};
LossRun run_loss(SmallModel& m, const std::vector<int32_t>& tokens,
                 const std::vector<int32_t>& targets) {
  auto f = m.function("loss", 2, 6);
  std::ranges::copy(tokens, f.input<int32_t>("tokens").begin());
  std::ranges::copy(targets, f.input<int32_t>("targets").begin());
  f.run();
  return {f.output<float>("loss")[0], f.output<float>("ce")[0]};
}

TEST_CASE("equal logits of the router give aux = layers, z = log(E)^2 each") {
  SmallModel m(small_config());
  for (auto& p : m.model.parameters().all())
    if (p.name.find(".router.") != p.name.npos)
      std::ranges::fill(m.state.f32(p.name), 0.0f);
  auto tokens = random_ids(12, 11, 3), targets = random_ids(12, 11, 4);
  auto r = run_loss(m, tokens, targets);
  // P is uniform, so that E sum f P = sum f = 1 in each of the two layers.
  double z = 2 * std::pow(std::log(4.0), 2);
  CHECK(r.loss - r.ce == doctest::Approx(0.1 * 2 + 0.01 * z).epsilon(1e-4));
}

TEST_CASE("aux is the closed form of each layer, from its own choices") {
  // One layer whose router sees a constant input: every token has the same
  // probabilities p, and chooses the same two experts.
  for (bool top1 : {false, true}) {
    SmallModel m(
        small_config({"model.n_layers=1", "model.norm=layer",
                      top1 ? "moe.aux_top1=true" : "moe.aux_top1=false"}));
    std::ranges::fill(m.state.f32("layers.0.norm2.weight"), 0.0f);
    auto bias = m.state.f32("layers.0.norm2.bias");
    auto router = m.state.f32("layers.0.moe.router.weight");
    std::vector<double> logit(4), p(4);
    double sum = 0;
    for (size_t e = 0; e < 4; ++e) {
      for (size_t i = 0; i < 8; ++i)
        logit[e] += double(router[e * 8 + i]) * bias[i];
      sum += p[e] = std::exp(logit[e]);
    }
    for (double& x : p) x /= sum;
    auto sorted = p;
    std::ranges::sort(sorted, std::greater<>());
    double aux = 4 * (top1 ? sorted[0] : (sorted[0] + sorted[1]) / 2);
    double z = std::pow(std::log(sum), 2);
    auto r = run_loss(m, random_ids(12, 11, 3), random_ids(12, 11, 4));
    CHECK(r.loss - r.ce == doctest::Approx(0.1 * aux + 0.01 * z).epsilon(1e-4));
  }
}

TEST_CASE("a target of -1 is ignored") {
  SmallModel m(small_config());
  auto tokens = random_ids(12, 11, 3), targets = random_ids(12, 11, 4);
  auto logits = m.logits(tokens, 2);
  std::vector<double> nll;
  for (size_t i = 0; i < 12; ++i) {
    double sum = 0;
    for (size_t v = 0; v < 11; ++v) sum += std::exp(logits[i * 11 + v]);
    nll.push_back(std::log(sum) - logits[i * 11 + size_t(targets[i])]);
  }
  targets[3] = targets[7] = -1;
  double mean = 0;
  for (size_t i = 0; i < 12; ++i)
    if (targets[i] >= 0) mean += nll[i] / 10;
  CHECK(run_loss(m, tokens, targets).ce == doctest::Approx(mean).epsilon(1e-5));
  std::ranges::fill(targets, -1);
  CHECK(run_loss(m, tokens, targets).ce == 0);
}

TEST_CASE("capacity: floor of the share, at least one slot") {
  MoeConfig m;
  m.experts = 8;
  m.top_k = 2;
  m.capacity = 1.25;
  CHECK(capacity_slots(m, 16) == 5);
  CHECK(capacity_slots(m, 1) == 1);
  m.capacity = 1.1;
  CHECK(capacity_slots(m, 40) == 11);
}

}  // namespace
}  // namespace moec::moe
