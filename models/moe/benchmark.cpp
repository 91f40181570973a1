#include "models/moe/benchmark.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>

#include "codegen/backend.h"
#include "ir/builder.h"
#include "models/moe/flops.h"
#include "models/moe/functions.h"
#include "models/moe/generation.h"
#include "models/moe/model_io.h"
#include "models/moe/schedule.h"
#include "runtime/trace.h"
#include "support/cpu.h"
#include "support/rng.h"

namespace moec::moe {
namespace {

double wall() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

double cpu() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Uniform over the vocabulary.
int32_t random_id(const Config& c, i64 index) {
  uint32_t word = random_word(uint64_t(c.train.seed), 0xbe9c4, index);
  return int32_t(uint64_t(word) * uint64_t(c.model.vocab) >> 32);
}

}  // namespace

void fill_random_batch(Function& f, const Config& config) {
  auto& t = config.train;
  auto tokens = f.input<int32_t>("tokens");
  auto targets = f.input<int32_t>("targets");
  for (i64 row = 0; row < t.batch; ++row)
    for (i64 i = 0; i <= t.seq; ++i) {
      int32_t id = random_id(config, row * (t.seq + 1) + i);
      if (i < t.seq) tokens[size_t(row * t.seq + i)] = id;
      if (i > 0) targets[size_t(row * t.seq + i - 1)] = id;
    }
}

TrainBenchmark bench_train(const Config& config, const EngineOptions& options,
                           i64 steps) {
  auto& t = config.train;
  TrainBenchmark b;
  Engine engine(options);
  Transformer model(config);
  State state;
  auto& params = model.parameters();
  init_parameters(state, params, uint64_t(t.seed));
  add_moments(state, params);
  b.params = params.count();
  double start = wall();
  Function f = engine.compile(train_step_function(model));
  b.compile_s = wall() - start;
  f.bind(state);

  fill_random_batch(f, config);
  constexpr i64 kWarmUp = 3;
  std::vector<double> times;
  double cpu_start = 0, peak = engine.measure_peak();
  for (i64 i = 0; i < steps + kWarmUp; ++i) {
    if (i == kWarmUp) cpu_start = cpu();
    f.input<float>("lr")[0] = float(learning_rate(t, i));
    f.input<float>("step")[0] = float(i + 1);
    std::ranges::copy(step_key(uint64_t(t.seed), i, 0),
                      f.input<uint32_t>("key").begin());
    start = wall();
    f.run();
    if (i >= kWarmUp) times.push_back(wall() - start);
    b.loss = f.output<float>("loss")[0];
    if (i == 0) b.loss0 = b.loss;
  }
  b.cpu_ms = 1e3 * (cpu() - cpu_start) / double(steps);
  std::ranges::sort(times);
  double median = times[size_t(steps / 2)];
  b.step_ms = 1e3 * median;
  b.p95_ms = 1e3 * times[size_t((steps - 1) * 95 / 100)];
  b.tokens_per_s = double(t.batch * t.seq) / median;
  b.peak_rss_mib = double(peak_resident_bytes()) / (1 << 20);
  peak = std::max(peak, engine.measure_peak());
  if (peak > 0)
    b.peak_fraction = b.tokens_per_s * train_flops_per_token(config) / peak;
  Trace trace;
  f.set_trace(&trace);
  f.run();
  f.set_trace(nullptr);
  b.profile = trace.table(peak);
  return b;
}

namespace {

// A prompt and one token, by kernel.
std::string profile(Generator& generator, const Config& config, i64 prompt) {
  std::vector<std::vector<int32_t>> text(1);
  for (i64 i = 0; i < prompt; ++i) text[0].push_back(random_id(config, i));
  std::string tables;
  for (const char* name : {"prefill", "one token"}) {
    Trace trace;
    generator.set_trace(&trace);
    generator.next(text);
    generator.set_trace(nullptr);
    tables += fmt::format("{}\n{}", name, trace.table());
    text[0].push_back(0);
  }
  return tables;
}

}  // namespace

DispatchBenchmark bench_dispatch(EngineOptions options) {
  constexpr int kPairs = 1000, kRounds = 50;
  auto g = std::make_unique<Graph>("dispatch");
  const Type t{DType::F32, {16}};
  Value x = g->add_arg("x", t), a = g->add_arg("a", t), c = g->add_arg("c", t);
  Builder b(*g);
  for (int i = 0; i < kPairs; ++i) x = b.add(b.mul(x, a), c);
  g->set_outputs({x});
  options.fuse = "off";
  Engine engine(options);
  Function f = engine.compile(std::move(g));
  DispatchBenchmark r;
  r.threads = engine.threads();
  r.launches = f.compiled().info().launches;
  double best = INFINITY;
  for (int i = 0; i < kRounds; ++i) {
    double start = wall();
    f.run();
    best = std::min(best, wall() - start);
  }
  r.us_per_launch = 1e6 * best / std::max(r.launches, 1);
  return r;
}

GenerateBenchmark bench_generate(const Config& given,
                                 const EngineOptions& options, i64 prompt,
                                 i64 tokens) {
  Config config = given;
  // So that the text is never cut.
  config.train.seq = std::max(config.train.seq, prompt + tokens);
  Engine engine(options);
  Transformer model(config);
  if (options.dtype == "bf16") model.store_weights(DType::BF16);
  State state;
  init_parameters(state, model.parameters(), uint64_t(config.train.seed));
  // What one token needs; a stream of as many bytes has the same caches.
  const double needed =
      active_weights(config) * (options.dtype == "bf16" ? 2 : 4);
  const auto stream = std::max<int64_t>(int64_t(needed), 16 << 20);
  Generator generator(engine, model, state);
  GenerateBenchmark b;
  b.threads = engine.threads();
  constexpr int kRounds = 3;
  double read = engine.measure_bandwidth(stream);
  // Round 0 compiles.
  for (int round = 0; round <= kRounds; ++round) {
    std::vector<std::vector<int32_t>> text(1);
    for (i64 i = 0; i < prompt; ++i)
      text[0].push_back(random_id(config, i + round));
    double start = wall();
    generator.next(text);
    double prefill = double(prompt) / (wall() - start);
    start = wall();
    for (i64 i = 0; i < tokens; ++i) {
      text[0].push_back(random_id(config, 1000000 + i));
      generator.next(text);
    }
    double decode = double(tokens) / (wall() - start);
    if (round == 0) continue;
    b.prefill_tokens_per_s = std::max(b.prefill_tokens_per_s, prefill);
    b.decode_tokens_per_s = std::max(b.decode_tokens_per_s, decode);
  }
  read = std::max(read, engine.measure_bandwidth(stream));
  b.profile = profile(generator, config, prompt);
  if (read > 0) b.bandwidth_fraction = b.decode_tokens_per_s * needed / read;
  return b;
}

}  // namespace moec::moe
