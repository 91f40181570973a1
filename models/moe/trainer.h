// Training: data, steps, evaluations, samples, checkpoints, resume.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

#include "models/moe/engine.h"

namespace moec::moe {

struct TrainOptions {
  Config config;
  EngineOptions engine;
  // The run's folder; empty: runs/NAME-K, the first K that is free.
  std::filesystem::path out;
  std::string name = "run";
  // Continue the run in `out` from its newest valid checkpoint; if it has
  // none, start.
  bool resume = false;
  // A checkpoint whose parameters the run starts from.
  std::optional<std::filesystem::path> init;
};

struct TrainReport {
  std::filesystem::path folder;
  i64 step = 0;                     // steps completed
  bool interrupted = false;         // by SIGINT or SIGTERM, after a checkpoint
  double loss = 0;                  // of the last step
  double val_loss = 0, val_ce = 0;  // of the last evaluation; NaN: none
  double tokens_per_s = 0;          // over the steps of this process
};

// Trains to config.train.steps in total. The folder gets metrics.jsonl (a line
// a step: step, loss, ce, aux, z, lr, grad_norm, tokens_per_s and, with MoE
// layers, load_entropy (1: balanced) and dead_experts, means over the layers of
// entropy [layer] and load [layer][expert]; at evaluations val_loss,
// val_ce, val_aux, val_z), config.toml and step-N folders. Progress and samples
// go to stderr. Losses and checkpoints are a function of config and data only.
TrainReport train(TrainOptions options);

// The config of `moec train` without one: a small MoE on the built-in text.
std::string_view default_config();

}  // namespace moec::moe
