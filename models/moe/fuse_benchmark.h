// One training step in several forms, side by side: what each fusion gains.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "models/moe/fusion_check.h"
#include "runtime/trace.h"

namespace moec::moe {

struct FuseOptions {
  i64 steps = 5;          // timed rounds, every form once in each; 0: none
  bool dense = true;      // also all experts on all tokens
  bool each = false;      // also each fusion switched off in turn
  bool gradients = true;  // compare loss and gradients
  CheckOptions run{.points = 0};  // compare over a run of training
};

// One form of the step.
struct StepForm {
  std::string name;  // "fused", "grouped", "dense", or "no attention"
  std::string fuse, moe;
  double compile_s = 0;
  double step_ms = 0, cpu_ms = 0;  // medians: wall, and process CPU time
  double peak_mib = 0;             // its own temporaries, as planned
  double gflops = 0;               // of the routed model, per second of wall
  double peak_fraction = 0;        // of that, over the measured peak
  int launches = 0;
  std::vector<KernelTime> kernels;  // of one step, the most time first
};

// How far a form is from the grouped one, on the same weights.
struct FormDifference {
  double loss = 0;      // |Δ| / |loss|
  double grad = 0;      // the largest over parameters of ‖Δ‖ / ‖g‖
  std::string grad_of;  // of which parameter
};

struct FuseBenchmark {
  int threads = 0;
  double peak_flops = 0;        // of all threads, measured in this process
  std::vector<StepForm> forms;  // fused, grouped, dense, then each one off
  FormDifference grouped, dense;
  FusionCheck run;  // fused against grouped

  const StepForm* find(std::string_view name) const;
};

// `engine` states the fused form; grouped is fuse=off moe=grouped, dense is
// fuse=off moe=dense. All forms run on the same weights and the same seeded
// batch, in turn: the learning rate is 0, so that no step changes a weight.
FuseBenchmark bench_fuse(const Config& config, const EngineOptions& engine,
                         const FuseOptions& options);

// The expert layer of a config against a dense layer of equal active FLOPs
// (hidden width top_k + shared_experts times as large), forward and backward.
struct LayerBenchmark {
  double fused_ms = 0, grouped_ms = 0, dense_ms = 0;  // median wall time
  double fused_peak_fraction = 0, dense_peak_fraction = 0;
  double tax() const { return dense_ms > 0 ? fused_ms / dense_ms : 0; }
};
LayerBenchmark bench_layer(const Config& config, const EngineOptions& engine,
                           i64 rounds);

}  // namespace moec::moe
