// Optimizers as part of the traced step.
#pragma once
#include "frontend/parameters.h"
#include "frontend/trace.h"

namespace moec::dsl {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
  bool decay_matrices_only = false;  // else everything decays
  double clip = 0;  // largest global norm of the gradients; 0: no limit
};

struct AdamWStep {
  // The new parameters and moments, named as the arguments that they replace:
  // "NAME", "adamw.m.NAME", "adamw.v.NAME".
  Outputs outputs;
  Tensor grad_norm;  // f32[], before clipping
};

// AdamW with decoupled weight decay (Loshchilov and Hutter 2019) for all
// parameters of the trace. `lr` is f32[], `step` f32[] and 1 for the first
// step. Adds the moments as inputs of the trace; they start as zeros.
AdamWStep adamw(const Parameters& params, const std::vector<Tensor>& grads,
                Tensor lr, Tensor step, const AdamWOptions& options);

// What the moments of a parameter are called.
std::string first_moment(std::string_view parameter);
std::string second_moment(std::string_view parameter);

}  // namespace moec::dsl
