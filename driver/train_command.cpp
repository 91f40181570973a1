// moec train: see models/moe/trainer.h.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "driver/commands.h"
#include "driver/common.h"
#include "models/moe/model_io.h"
#include "models/moe/trainer.h"
#include "support/error.h"

namespace moec {
namespace {

struct Options : RunFlags {
  std::string config, out, resume, init;
  std::vector<std::string> data;
  i64 steps = -1;
};

// The newest folder runs/NAME-K, or none.
std::filesystem::path latest_run(const std::string& name) {
  std::filesystem::path found;
  for (int k = 1;; ++k) {
    auto folder =
        std::filesystem::path("runs") / (name + "-" + std::to_string(k));
    if (!std::filesystem::exists(folder)) return found;
    found = folder;
  }
}

void run(const Options& o) {
  moe::TrainOptions t;
  t.out = o.out;
  auto set = o.set;
  if (o.steps >= 0) set.push_back(fmt::format("train.steps={}", o.steps));
  std::filesystem::path config = o.config;
  t.name = !o.config.empty() ? config.stem().string()
           : !o.init.empty() ? "tuned"
                             : "default";
  if (!o.resume.empty()) {
    t.resume = true;
    if (o.resume == "auto") {
      if (t.out.empty()) t.out = latest_run(t.name);
    } else {
      std::filesystem::path from = o.resume;
      if (!std::filesystem::is_directory(from))
        user_error("--resume {}: there is no such folder", o.resume);
      // A step folder stands for its run.
      if (std::filesystem::exists(from / "manifest.json"))
        from = std::filesystem::absolute(from).lexically_normal().parent_path();
      if (!t.out.empty() && t.out != from)
        usage_error(
            "--resume {} continues that run; leave --out away, or use "
            "--init to start a new one from it",
            o.resume);
      t.out = from;
      if (config.empty()) config = from / "config.toml";
    }
  }
  if (!config.empty())
    t.config = moe::load_config(config, set);
  else if (!o.init.empty())
    t.config = moe::open_model(o.init, set).config;
  else
    t.config = moe::parse_config(moe::default_config(), "default", set);
  if (!o.data.empty()) t.config.data.path = o.data;
  if (!o.init.empty()) t.init = o.init;
  t.engine = engine_options(o, t.config);
  auto r = moe::train(t);
  if (o.json) {
    nlohmann::ordered_json j = {
        {"folder", r.folder.string()},   {"step", r.step},
        {"interrupted", r.interrupted},  {"loss", r.loss},
        {"val_loss", r.val_loss},        {"val_ce", r.val_ce},
        {"tokens_per_s", r.tokens_per_s}};
    fmt::print("{}\n", j.dump());
  } else {
    fmt::print(stderr, "{} after step {}: {}/step-{}\n",
               r.interrupted ? "interrupted" : "finished", r.step,
               r.folder.string(), r.step);
  }
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("train", "Train a model");
  c->add_option("config", o->config,
                "Config (TOML); without one, that of --init, or a small model "
                "on built-in text");
  add_data_flag(*c, o->data);
  c->add_option("--out", o->out, "Run folder; default runs/NAME-K");
  c->add_option("--resume", o->resume,
                "auto: continue the run in --out if there is one; or its "
                "folder");
  c->add_option("--init", o->init,
                "Checkpoint whose weights a new run starts from");
  c->add_option("--steps", o->steps, "Steps in total (train.steps)")
      ->check(CLI::NonNegativeNumber);
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
