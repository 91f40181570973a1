// What a model costs: memory of a training step, and the bounds that the
// machine's arithmetic and memory set to training and generation.
#pragma once
#include "models/moe/engine.h"
#include "models/moe/transformer.h"

namespace moec::moe {

struct CostReport {
  i64 parameters = 0, active_parameters = 0;
  double flops_per_token = 0;  // of training (flops.h)
  // Memory of a training step at the config's batch: the state, and what is
  // planned beside it.
  i64 parameter_bytes = 0, moment_bytes = 0, temporary_bytes = 0;
  // All that the kernels of a step compute and move to and from memory.
  double step_flops = 0, step_bytes = 0;
  i64 launches = 0;
  // A token of generation reads the weights that it meets.
  double decode_bytes = 0;
  // Measured, of all threads; 0 on devices that have none.
  double peak = 0, bandwidth = 0;

  double compute_seconds() const { return peak > 0 ? step_flops / peak : 0; }
  double memory_seconds() const {
    return bandwidth > 0 ? step_bytes / bandwidth : 0;
  }
  double decode_tokens_per_s() const {
    return decode_bytes > 0 ? bandwidth / decode_bytes : 0;
  }
};

// Compiles the training step, and measures the machine.
CostReport report_costs(Engine& engine, const Transformer& model);

}  // namespace moec::moe
