// The seeds' configs, examples/seeds/*.toml: sizes, and training for some
// steps.
#include <cmath>

#include "models/moe/trainer.h"
#include "runtime/metrics.h"
#include "support/file.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

Config seed_config(const std::string& name,
                   const std::vector<std::string>& set = {}) {
  return load_config("examples/seeds/" + name + ".toml", set);
}

const std::string kSeeds[] = {"jax_moe", "makemoe", "nanomoe", "tiny_moe"};

TEST_CASE("parameters are counted as the originals count theirs") {
  auto count = [](const Config& c) {
    return Transformer(c).parameters().count();
  };
  CHECK(count(seed_config("nanomoe", {"model.vocab=65"})) == 2409025);
  CHECK(count(seed_config("tiny_moe", {"model.vocab=50304"})) == 54639936);
  // makeMoE's example on a 65-character text.
  CHECK(count(seed_config("makemoe", {"model.vocab=65"})) == 4512897);
}

// Trains a seed on small batches; its losses, by step.
std::vector<double> losses_of(const std::string& seed, const std::string& text,
                              i64 steps) {
  std::vector<std::string> set = {"train.batch=4",
                                  "train.seq=32",
                                  "train.eval_every=0",
                                  "train.warmup=0",
                                  "train.lr=2e-3",
                                  "train.eval_batches=4",
                                  "train.steps=" + std::to_string(steps)};
  if (!text.empty()) set.push_back("data.path=" + text);
  if (text.empty()) set.push_back("data.path=builtin:chronicle");
  if (seed == "jax_moe") set.push_back("data.tokenizer=bpe:400");
  // In its proportions; whole, a checkpoint takes 400 MB.
  if (seed == "tiny_moe")
    set.insert(set.end(),
               {"model.d_model=192", "model.n_heads=3", "model.n_kv_heads=1",
                "model.d_ff=512", "data.tokenizer=bpe:400"});
  TempDir dir;
  TrainOptions o;
  o.config = seed_config(seed, set);
  o.engine = engine_options(o.config);
  o.out = dir / "run";
  auto report = train(o);
  CHECK(report.step == steps);
  CHECK(std::isfinite(report.val_ce));
  std::vector<double> losses;
  for (auto& line : read_metrics(dir / "run/metrics.jsonl"))
    for (auto& [name, value] : line.metrics)
      if (name == "ce") losses.push_back(value);
  return losses;
}

void falls(const std::string& text, i64 steps, double by) {
  for (auto& seed : kSeeds) {
    CAPTURE(seed);
    auto ce = losses_of(seed, text, steps);
    REQUIRE(i64(ce.size()) == steps);
    double last = 0;
    for (i64 i = steps - 5; i < steps; ++i) last += ce[size_t(i)] / 5;
    MESSAGE(seed << ": " << ce[0] << " -> " << last);
    CHECK(last < ce[0] - by);
  }
}

TEST_CASE("every seed learns from the built-in text") { falls("", 20, 0.6); }

TEST_CASE("every seed learns from Tiny Shakespeare and Panchatantra") {
  for (std::string name : {"tinyshakespeare", "panchatantra-ryder-clean"}) {
    auto text = "../shared/data/" + name + ".txt";
    if (!std::filesystem::exists(text)) {
      skip_test("needs " + text);
      return;
    }
    falls(text, long_tests() ? 300 : 20, long_tests() ? 0.9 : 0.6);
  }
}

}  // namespace
}  // namespace moec::moe
