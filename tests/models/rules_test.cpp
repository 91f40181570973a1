// What a mixture of experts must hold whatever its config, over all variants:
// slots, gates, losses, noise, and what can be learnt from nothing.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "models/moe/config_fields.h"
#include "models/moe/router.h"
#include "models/moe/schedule.h"
#include "runtime/token_source.h"
#include "support/rng.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

TEST_CASE("the variants have every choice of [model] and [moe]") {
  std::set<std::string> seen;
  for (auto& set : variants()) {
    Config c = small_config(set);
    for (auto& f : fields(c))
      if (auto* s = std::get_if<std::string*>(&f.target))
        seen.insert(fmt::format("{}.{}={}", f.section, f.key, **s));
  }
  Config c = small_config();
  for (auto& f : fields(c))
    if (f.section == "model" || f.section == "moe")
      for (auto& value : f.allowed)
        // A dense block's kinds are the experts' kinds.
        if (f.key != "dense_ffn")
          CHECK_MESSAGE(
              seen.contains(fmt::format("{}.{}={}", f.section, f.key, value)),
              f.key, " = ", value);
}

bool has_experts(const Config& c) { return c.num_moe_layers() > 0; }

// What the routers of a model decide for tokens, with the capacity of
// training. Per MoE layer; n is the token's place in [rows, seq].
struct Choices {
  i64 rows, seq, k, experts;
  std::vector<int32_t> index;              // [n * k + j]
  std::vector<float> weight, gate, probs;  // [n * k + j], [n * E + e]
  double aux = 0;
};
std::vector<Choices> choices_of(SmallModel& m, const std::vector<int32_t>& ids,
                                i64 rows) {
  i64 seq = i64(ids.size()) / rows;
  auto graph = dsl::trace("choices", m.model.parameters(), [&] {
    EncodeOptions o;
    o.capacity = true;
    auto tokens = dsl::input("tokens", DType::I32, {rows, seq});
    dsl::Outputs out;
    for (auto& r : m.model.encode(tokens, o).routings) {
      auto layer = std::to_string(out.size() / 5);
      out.push_back({"index" + layer, r.indices});
      out.push_back({"weight" + layer, r.weights});
      out.push_back({"gate" + layer, r.gate});
      out.push_back({"probs" + layer, r.probs});
      out.push_back({"aux" + layer, r.aux});
    }
    return out;
  });
  auto f = m.engine.compile(std::move(graph));
  f.bind(m.state);
  std::ranges::copy(ids, f.input<int32_t>("tokens").begin());
  f.run();
  std::vector<Choices> all;
  for (i64 l = 0; l < m.config.num_moe_layers(); ++l) {
    auto& c = all.emplace_back();
    c.rows = rows, c.seq = seq;
    c.k = m.config.moe.top_k, c.experts = m.config.moe.experts;
    auto n = std::to_string(l);
    auto copy = [&](auto& to, auto from) {
      to.assign(from.begin(), from.end());
    };
    copy(c.index, f.output<int32_t>("index" + n));
    copy(c.weight, f.output<float>("weight" + n));
    copy(c.gate, f.output<float>("gate" + n));
    copy(c.probs, f.output<float>("probs" + n));
    c.aux = f.output<float>("aux" + n)[0];
  }
  return all;
}

// Calls fn(layer's choices) for every MoE layer of every variant.
template <class F>
void for_each_layer(i64 rows, F fn) {
  for (auto& set : variants()) {
    CAPTURE(set);
    Config c = small_config(set);
    if (!has_experts(c)) continue;
    SmallModel m(c);
    for (auto& layer : choices_of(m, random_ids(rows * 6, 11, 8), rows))
      fn(c, layer);
  }
}

TEST_CASE("slots go by position, row and choice; kept and dropped are all") {
  int dropped_somewhere = 0;
  for_each_layer(3, [&](const Config& config, const Choices& c) {
    bool by_row = config.moe.capacity_scope == "row";
    i64 tokens = c.rows * c.seq, kept = 0, dropped = 0;
    i64 slots = config.moe.capacity == 0
                    ? tokens * c.k
                    : capacity_slots(config.moe, by_row ? c.seq : tokens);
    // [row or 0, expert] -> slots taken.
    std::map<std::pair<i64, int32_t>, i64> used;
    for (i64 t = 0; t < c.seq; ++t)
      for (i64 r = 0; r < c.rows; ++r)
        for (i64 j = 0; j < c.k; ++j) {
          auto at = size_t((r * c.seq + t) * c.k + j);
          i64& taken = used[{by_row ? r : 0, c.index[at]}];
          bool fits = taken < slots;
          taken += fits;
          REQUIRE((c.weight[at] > 0) == fits);
          ++(fits ? kept : dropped);
        }
    CHECK(kept + dropped == tokens * c.k);
    dropped_somewhere += dropped > 0;
  });
  // Four of the variants have a capacity below one.
  CHECK(dropped_somewhere >= 4);
}

TEST_CASE("a token's choices differ, and its gates are their weights") {
  for_each_layer(2, [&](const Config& config, const Choices& c) {
    for (i64 n = 0; n < c.rows * c.seq; ++n) {
      std::vector<float> gate(size_t(c.experts), 0);
      std::set<int32_t> chosen;
      double sum = 0;
      for (i64 j = 0; j < c.k; ++j) {
        auto at = size_t(n * c.k + j);
        REQUIRE(c.index[at] >= 0);
        REQUIRE(c.index[at] < c.experts);
        CHECK(chosen.insert(c.index[at]).second);
        gate[size_t(c.index[at])] = c.weight[at];
        sum += c.weight[at];
      }
      for (size_t e = 0; e < gate.size(); ++e)
        CHECK(gate[e] == c.gate[size_t(n * c.experts) + e]);
      if (config.moe.capacity > 0) continue;
      if (config.moe.gate == "softmax_topk")
        CHECK(sum < 1);
      else
        CHECK(sum == doctest::Approx(1));
    }
  });
}

TEST_CASE("aux is E sum f P in every layer") {
  for_each_layer(2, [&](const Config& config, const Choices& c) {
    i64 n = c.rows * c.seq, counted = config.moe.aux_top1 ? 1 : c.k;
    double aux = 0;
    for (i64 e = 0; e < c.experts; ++e) {
      double f = 0, p = 0;
      for (i64 t = 0; t < n; ++t) {
        for (i64 j = 0; j < counted; ++j)
          f += double(c.index[size_t(t * c.k + j)] == e) / double(n * counted);
        p += double(c.probs[size_t(t * c.experts + e)]) / double(n);
      }
      aux += double(c.experts) * f * p;
    }
    CHECK(c.aux == doctest::Approx(aux).epsilon(1e-5));
  });
}

TEST_CASE("equal logits choose the experts of the lowest indices") {
  for (auto& set : variants()) {
    CAPTURE(set);
    Config c = small_config(set);
    if (!has_experts(c)) continue;
    for (auto device : {"ref", "cpu"}) {
      SmallModel m(c, device);
      for (auto& p : m.model.parameters().all())
        if (p.name.find(".router.") != p.name.npos)
          std::ranges::fill(m.state.f32(p.name), 0.0f);
      for (auto& layer : choices_of(m, random_ids(12, 11, 8), 2))
        for (size_t i = 0; i < layer.index.size(); ++i)
          REQUIRE(layer.index[i] == int32_t(i) % int32_t(layer.k));
    }
  }
}

TEST_CASE("top-k then softmax equals softmax, top-k, renormalised") {
  auto tokens = random_ids(12, 11, 3);
  for (auto set : variants()) {
    CAPTURE(set);
    set.push_back("moe.gate=topk_softmax");
    SmallModel a(small_config(set));
    set.back() = "moe.gate=softmax_topk_renorm";
    SmallModel b(small_config(set));
    CHECK(difference(a.logits(tokens, 2), b.logits(tokens, 2)) < 1e-5);
  }
}

TEST_CASE("noise and dropout belong to training alone") {
  auto draws = [](const Graph& g) {
    for (Node* n : g)
      for (Op op : {Op::Dropout, Op::RandomNormal, Op::RandomUniform})
        if (n->op() == op) return true;
    return false;
  };
  int noisy = 0;
  for (auto& set : variants()) {
    CAPTURE(set);
    Config c = small_config(set);
    Transformer model(c);
    bool random =
        c.model.dropout > 0 || (c.moe.noise != "none" && has_experts(c));
    noisy += random;
    for (auto& name : function_names(model)) {
      CAPTURE(name);
      CHECK(draws(*make_function(model, name, 2, 6)) ==
            (random && name == "train_step"));
    }
  }
  CHECK(noisy >= 3);
}

// In bf16 a position such as 1001 would round to 1000: off by a radian.
TEST_CASE("angles of positions are f32, whatever the data's type") {
  constexpr i64 kPositions = 2048, kWidth = 8;
  for (auto device : {"ref", "cpu"})
    for (bool given : {false, true}) {
      Engine engine({.device = device, .threads = 1});
      auto f = engine.compile(dsl::trace("angles", [&] {
        auto ids = dsl::input("positions", DType::I32, {1, kPositions});
        auto x =
            dsl::cast(dsl::input("x", DType::F32, {1, 1, kPositions, kWidth}),
                      DType::BF16);
        auto y = given ? dsl::rope(x, ids, 1e4) : dsl::rope(x, 1e4);
        return dsl::Outputs{{"y", dsl::cast(y, DType::F32)}};
      }));
      auto ids = f.input<int32_t>("positions");
      for (size_t t = 0; t < ids.size(); ++t) ids[t] = int32_t(t);
      auto x = f.input<float>("x");
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = i % kWidth < kWidth / 2 ? 1.0f : 0.0f;
      f.run();
      auto y = f.output<float>("y");
      double worst = 0;
      for (i64 t = 0; t < kPositions; ++t)
        for (i64 i = 0; i < kWidth / 2; ++i) {
          double angle = double(t) * std::pow(1e4, -2.0 * double(i) / kWidth);
          auto at = size_t(t * kWidth + i);
          worst = std::max({worst, std::abs(y[at] - std::cos(angle)),
                            std::abs(y[at + kWidth / 2] - std::sin(angle))});
        }
      CHECK(worst < 1.0 / 256);
    }
}

// The compiled kernels drop what the meaning drops.
TEST_CASE("loss with capacity: fused, grouped and the meaning agree") {
  auto tokens = random_ids(12, 11, 3), targets = random_ids(12, 11, 4);
  for (auto& set : variants()) {
    CAPTURE(set);
    Config c = small_config(set);
    std::vector<float> losses;
    for (auto how : {"ref fused", "cpu fused", "cpu grouped", "cpu dense"}) {
      EngineOptions o;
      o.device = std::string(how).substr(0, 3);
      o.moe = std::string(how).substr(4);
      o.threads = 1;
      SmallModel m(c, o);
      auto f = m.function("loss", 2, 6);
      std::ranges::copy(tokens, f.input<int32_t>("tokens").begin());
      std::ranges::copy(targets, f.input<int32_t>("targets").begin());
      f.run();
      losses.push_back(f.output<float>("loss")[0]);
    }
    for (float loss : losses)
      CHECK(loss == doctest::Approx(losses[0]).epsilon(1e-5));
  }
}

// Nats of fresh uniform tokens, and the standard error of their mean.
std::pair<double, double> random_nats(SmallModel& m) {
  constexpr i64 kRows = 100, kSeq = 6, kBatches = 20, kVocab = 11;
  auto f = m.function("logits", kRows, kSeq);
  double sum = 0, squares = 0;
  for (i64 b = 0; b < kBatches; ++b) {
    auto ids = random_ids(kRows * (kSeq + 1), kVocab, uint64_t(1000 + b));
    auto tokens = f.input<int32_t>("tokens");
    for (i64 i = 0; i < kRows * kSeq; ++i)
      tokens[size_t(i)] = ids[size_t(i / kSeq * (kSeq + 1) + i % kSeq)];
    f.run();
    auto logits = f.output<float>("logits");
    for (i64 i = 0; i < kRows * kSeq; ++i) {
      auto row = logits.subspan(size_t(i * kVocab), kVocab);
      double total = 0;
      for (float l : row) total += std::exp(double(l));
      auto next = ids[size_t(i / kSeq * (kSeq + 1) + i % kSeq + 1)];
      double nats = std::log(total) - double(row[size_t(next)]);
      sum += nats, squares += nats * nats;
    }
  }
  double n = kRows * kSeq * kBatches, mean = sum / n;
  return {mean, std::sqrt((squares / n - mean * mean) / n)};
}

// No model can be below ln V on tokens that nothing predicts, except by chance.
TEST_CASE("random tokens cannot be predicted, before and after training") {
  for (auto set : variants()) {
    set.insert(set.end(), {"train.batch=8", "train.lr=1e-2"});
    CAPTURE(set);
    EngineOptions o;
    o.threads = 1;
    SmallModel m(small_config(set), o);
    auto [first, first_error] = random_nats(m);
    CHECK(first >= std::log(11.0) - 4 * first_error);
    auto step = m.engine.compile(train_step_function(m.model));
    for (auto& spec : step.inputs())
      if (spec.name.starts_with("adamw.")) m.state.add(spec);
    step.bind(m.state);
    TrainWindows windows(TokenSource(random_ids(14000, 11, 21)), 6, 5);
    for (i64 i = 0; i < 200; ++i) {
      auto batch = windows.batch(i, 8);
      std::ranges::copy(batch.tokens, step.input<int32_t>("tokens").begin());
      std::ranges::copy(batch.targets, step.input<int32_t>("targets").begin());
      step.input<float>("lr")[0] = 1e-2f;
      step.input<float>("step")[0] = float(i + 1);
      if (auto key = step.input<uint32_t>("key"); !key.empty())
        std::ranges::copy(step_key(1, i, 0), key.begin());
      step.run();
    }
    auto [last, last_error] = random_nats(m);
    CHECK(last >= std::log(11.0) - 4 * last_error);
    CHECK(last < first);  // It did learn that nothing is likelier.
  }
}

}  // namespace
}  // namespace moec::moe
