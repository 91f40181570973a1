// The speed of a training step and of generation.
#pragma once
#include "models/moe/engine.h"

namespace moec::moe {

struct TrainBenchmark {
  i64 params = 0;
  double compile_s = 0;
  double step_ms = 0;  // median of the timed steps
  double p95_ms = 0;   // 95 of 100 steps were no slower
  double cpu_ms = 0;   // process CPU time of that many steps, per step
  double tokens_per_s = 0;
  double peak_rss_mib = 0;
  double peak_fraction = 0;    // of threads * the FMA peak measured here
  double loss0 = 0, loss = 0;  // of the very first and the last step
  std::string profile;         // time by kernel of one more step, as a table
};

// 3 steps to warm up, then `steps` timed ones, on one seeded batch of uniform
// random tokens. config.model.vocab must be known.
TrainBenchmark bench_train(const Config& config, const EngineOptions& engine,
                           i64 steps);

// Fills tokens and targets with seeded ids, uniform over the vocabulary; they
// are the same for every function of the config.
void fill_random_batch(Function& f, const Config& config);

// Microseconds that one launch of a kernel costs: the time of a chain of tiny
// kernels over its length; the best of some rounds.
struct DispatchBenchmark {
  int threads = 0, launches = 0;
  double us_per_launch = 0;
};
DispatchBenchmark bench_dispatch(EngineOptions engine);

struct GenerateBenchmark {
  int threads = 0;
  double prefill_tokens_per_s = 0, decode_tokens_per_s = 0;
  // Weights that a token meets, in bytes, times tokens a second, over the
  // bytes a second that all threads read from memory in this run.
  double bandwidth_fraction = 0;
  std::string profile;  // time by kernel of one more round, as tables
};

// Random weights and prompt, one row; the best of 3 rounds.
GenerateBenchmark bench_generate(const Config& config,
                                 const EngineOptions& engine, i64 prompt,
                                 i64 tokens);

}  // namespace moec::moe
