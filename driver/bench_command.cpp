// moec bench: how fast, and how near to the machine's limits.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "codegen/cpu/jit.h"
#include "codegen/cpu/peak.h"
#include "driver/bench_kernels.h"
#include "driver/commands.h"
#include "driver/common.h"
#include "driver/tokenizer_command.h"
#include "models/moe/benchmark.h"
#include "models/moe/model_io.h"

namespace moec {
namespace {

struct TrainFlags : RunFlags {
  std::string config, dtype;
  i64 steps = 10;
  bool profile = false;
};

void run_train(const TrainFlags& o) {
  auto set = o.set;
  if (!o.dtype.empty()) set.push_back("train.dtype=" + o.dtype);
  auto config = moe::open_model(o.config, set).config;
  auto engine = engine_options(o, config);
  auto b = moe::bench_train(config, engine, o.steps);
  if (o.profile) fmt::print(stderr, "{}", b.profile);
  moe::Engine threads(engine);
  nlohmann::ordered_json j = {
      {"config", std::filesystem::path(o.config).stem().string()},
      {"dtype", config.train.dtype},
      {"threads", threads.threads()},
      {"params", b.params},
      {"compile_s", b.compile_s},
      {"step_ms", b.step_ms},
      {"p95_ms", b.p95_ms},
      {"cpu_ms", b.cpu_ms},
      {"tokens_per_s", b.tokens_per_s},
      {"peak_rss_mib", b.peak_rss_mib},
      {"peak_fraction", b.peak_fraction},
      {"loss0", b.loss0},
      {"loss", b.loss}};
  if (o.json) {
    fmt::print("{}\n", j.dump());
    return;
  }
  for (auto& [key, value] : j.items())
    fmt::print("{:14} {}\n", key, value.dump());
}

void add_train(CLI::App& bench) {
  auto o = std::make_shared<TrainFlags>();
  auto* c = bench.add_subcommand("train", "A training step of a config");
  c->add_option("config", o->config, "Config or checkpoint")->required();
  c->add_option("--dtype", o->dtype, "f32 or bf16 (train.dtype)");
  c->add_option("--steps", o->steps, "Timed steps")
      ->check(CLI::Range(1, 1000000));
  c->add_flag("--profile", o->profile, "Time by kernel, to stderr");
  add_run_flags(*c, *o);
  c->callback([o] { run_train(*o); });
}

void run_peak(bool json) {
  KernelLibrary library(host_target());
  Peak p = measure_peak(library);
  nlohmann::ordered_json j = {
      {"f32_gflops", p.f32 / 1e9},
      {"bf16_gflops", p.bf16 / 1e9},
      {"bf16_dot_gflops", p.bf16_dot / 1e9},
      {"bf16_tile_gflops", p.bf16_tile / 1e9},
      {"f32_flop_per_cycle", measure_flops_per_cycle(library, false)},
      {"bf16_flop_per_cycle", measure_flops_per_cycle(library, true)},
      {"read_gb_per_s", p.read / 1e9},
      {"copy_gb_per_s", p.copy / 1e9}};
  if (json) {
    fmt::print("{}\n", j.dump());
    return;
  }
  fmt::print("one thread\n");
  for (auto& [key, value] : j.items())
    fmt::print("{:20} {:.1f}\n", key, double(value));
}

void add_peak(CLI::App& bench) {
  auto json = std::make_shared<bool>(false);
  auto* c = bench.add_subcommand("peak", "FMA and memory rates of one thread");
  c->add_flag("--json", *json, "One JSON object as the last line of stdout");
  c->callback([json] { run_peak(*json); });
}

struct GenerateFlags : RunFlags {
  std::string config, dtype;
  i64 prompt = 128, tokens = 64;
  bool profile = false;
};

void run_generate(const GenerateFlags& o) {
  auto set = o.set;
  if (!o.dtype.empty()) set.push_back("train.dtype=" + o.dtype);
  auto config = moe::open_model(o.config, set).config;
  auto b = moe::bench_generate(config, engine_options(o, config), o.prompt,
                               o.tokens);
  if (o.profile) fmt::print(stderr, "{}", b.profile);
  nlohmann::ordered_json j = {
      {"config", std::filesystem::path(o.config).stem().string()},
      {"dtype", config.train.dtype},
      {"threads", b.threads},
      {"prefill_tokens_per_s", b.prefill_tokens_per_s},
      {"decode_tokens_per_s", b.decode_tokens_per_s},
      {"bandwidth_fraction", b.bandwidth_fraction}};
  if (o.json) {
    fmt::print("{}\n", j.dump());
    return;
  }
  for (auto& [key, value] : j.items())
    fmt::print("{:22} {}\n", key, value.dump());
}

void add_generate(CLI::App& bench) {
  auto o = std::make_shared<GenerateFlags>();
  auto* c = bench.add_subcommand("generate", "Prefill and decoding");
  c->add_option("config", o->config, "Config or checkpoint")->required();
  c->add_option("--dtype", o->dtype, "f32 or bf16 (train.dtype)");
  c->add_option("--prompt", o->prompt, "Tokens of the prompt")
      ->check(CLI::Range(1, 1 << 20));
  c->add_option("--tokens", o->tokens, "Tokens to write")
      ->check(CLI::Range(1, 1 << 20));
  c->add_flag("--profile", o->profile, "Time by kernel, to stderr");
  add_run_flags(*c, *o);
  c->callback([o] { run_generate(*o); });
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto* bench = app.add_subcommand("bench", "Measure speed");
  bench->require_subcommand(1);
  add_train(*bench);
  add_peak(*bench);
  add_bench_ops(*bench);
  add_bench_attention(*bench);
  add_bench_moe(*bench);
  add_generate(*bench);
  add_bench_fuse(*bench);
  add_bench_tokenizer(*bench);
}

}  // namespace moec
