// Training: resume, determinism, what the loss can and cannot reach.
#include "models/moe/trainer.h"

#include <algorithm>
#include <cmath>

#include "models/moe/data.h"
#include "models/moe/evaluation.h"
#include "models/moe/model_io.h"
#include "runtime/metrics.h"
#include "support/error.h"
#include "support/file.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

// A run of the small model on a text of 11 letters.
TrainOptions small_run(const TempDir& dir, const std::string& out, i64 steps,
                       std::vector<std::string> set = {}) {
  auto text = dir / "text.txt";
  if (!std::filesystem::exists(text)) {
    std::string letters;
    for (int32_t id : random_ids(400, 11, 9)) letters += char('a' + id);
    write_file_atomic(text, letters);
  }
  set.insert(set.end(),
             {"data.path=" + text.string(), "train.lr=1e-2",
              "train.steps=" + std::to_string(steps), "train.eval_every=4",
              "train.save_every=3", "train.clip=1.0"});
  TrainOptions o;
  o.config = small_config(set);
  o.engine = engine_options(o.config);
  o.engine.threads = 1;
  o.out = dir / out;
  return o;
}

std::string contents(const std::filesystem::path& step) {
  std::string all;
  for (auto name : {"model.safetensors", "optimizer.safetensors",
                    "manifest.json", "config.toml", "tokenizer.json"})
    all += read_file(step / name);
  return all;
}

std::vector<MetricsLine> without_speed(const std::filesystem::path& file) {
  auto lines = read_metrics(file);
  for (auto& l : lines)
    std::erase_if(l.metrics, [](auto& m) { return m.first == "tokens_per_s"; });
  return lines;
}

TEST_CASE("a run that stopped and resumed has the bits of one that did not") {
  for (auto extra : {"model.dropout=0.2", "train.accumulate=2"}) {
    CAPTURE(extra);
    TempDir dir;
    train(small_run(dir, "whole", 8, {extra}));
    auto part = small_run(dir, "part", 8, {extra});
    part.config.train.steps = 5;
    train(part);
    part.config.train.steps = 8;
    part.resume = true;
    auto report = train(part);
    CHECK(report.step == 8);
    CHECK(contents(dir / "whole/step-8") == contents(dir / "part/step-8"));
    auto a = without_speed(dir / "whole/metrics.jsonl");
    auto b = without_speed(dir / "part/metrics.jsonl");
    REQUIRE(a.size() == 8);
    REQUIRE(b.size() == 8);
    for (size_t i = 0; i < 8; ++i) {
      CHECK(a[i].step == i64(i) + 1);
      CHECK(b[i].step == i64(i) + 1);
      // The evaluation after the last step of the part is one more.
      if (i != 4) CHECK(a[i].metrics == b[i].metrics);
    }
  }
}

TEST_CASE("the bits do not depend on the number of threads") {
  TempDir dir;
  std::string first;
  for (int threads : {1, 2, 3}) {
    auto o = small_run(dir, "t" + std::to_string(threads), 4);
    o.engine.threads = threads;
    train(o);
    auto bits = contents(o.out / "step-4");
    if (threads == 1) first = bits;
    CHECK(bits == first);
  }
}

TEST_CASE("a folder with another run, and another config, are refused") {
  TempDir dir;
  train(small_run(dir, "run", 2));
  CHECK_THROWS_AS(train(small_run(dir, "run", 2)), UserError);
  auto other = small_run(dir, "run", 4, {"model.d_ff=16"});
  other.resume = true;
  CHECK_THROWS_WITH_AS(train(other), doctest::Contains("model.d_ff"),
                       UsageError);
}

TEST_CASE("a resume with nothing to resume starts") {
  TempDir dir;
  auto o = small_run(dir, "fresh", 2);
  o.resume = true;
  CHECK(train(o).step == 2);
}

TEST_CASE("--init takes the parameters and starts at step 0") {
  TempDir dir;
  train(small_run(dir, "first", 3));
  auto o = small_run(dir, "second", 1);
  o.init = dir / "first";
  CHECK(train(o).step == 1);
}

// On fresh uniform tokens no model can be below ln V, except by chance.
TEST_CASE("random tokens cannot be predicted, not even after training") {
  TempDir dir;
  auto o = small_run(dir, "random", 200, {"train.batch=8"});
  std::string letters;
  for (int32_t id : random_ids(14000, 11, 21)) letters += char('a' + id);
  write_file_atomic(dir / "text.txt", letters);
  o.config.train.eval_every = 0;
  o.config.train.save_every = 0;
  train(o);
  auto opened = open_model(dir / "random");
  SmallModel m(opened.config, o.engine.device);
  read_parameters(m.state, m.model.parameters(), opened.checkpoint->model());
  auto f = m.function("eval", 8, 6);
  i64 n = 12000;
  EvalWindows windows(TokenSource(random_ids(n + 1, 11, 77)), 6);
  auto e = evaluate(f, opened.config, windows, 8);
  CHECK(e.tokens == n);
  // The loss of a token has a standard deviation of about 0.3 here.
  CHECK(e.ce >= std::log(11.0) - 4 * 0.3 / std::sqrt(double(n)));
  CHECK(e.ce < std::log(11.0) + 0.5);
}

// The failing step is repeated without fusions, from the newest checkpoint.
TEST_CASE("a step that is not finite names the op, and harms no checkpoint") {
  for (auto extra : {"train.accumulate=1", "train.accumulate=2"}) {
    CAPTURE(extra);
    TempDir dir;
    auto o = small_run(dir, "run", 40, {extra});
    o.config.train.clip = 0;
    o.config.train.lr = 1e30;
    o.config.train.save_every = 1;
    std::string why = error_of([&] { train(o); });
    CAPTURE(why);
    CHECK(why.find(" is not finite") != why.npos);
    CHECK(why.find("without fusions it begins at ") != why.npos);
    // The op, and the model's line.
    CHECK(why.find("(transformer.cpp:") != why.npos);
    CHECK(why.find("train.lr") != why.npos);
    auto last = open_checkpoint(dir / "run");
    CHECK(why.find(fmt::format("up to step {} are unharmed", last.step)) !=
          why.npos);
    CHECK(std::filesystem::exists(dir / "run/step-1"));
  }
}

TEST_CASE("checkpoints that do not fit name the tensor") {
  TempDir dir;
  train(small_run(dir, "run", 1));
  auto opened = open_model(dir / "run", {"model.d_ff=10"});
  Transformer model(opened.config);
  State state;
  CHECK_THROWS_WITH_AS(load_parameters(state, model.parameters(), opened),
                       doctest::Contains("layers.0.moe.experts"), UserError);
}

}  // namespace
}  // namespace moec::moe
