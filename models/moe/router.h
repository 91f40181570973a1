// The router: which experts serve a token, with what weights.
#pragma once
#include "models/moe/ffn.h"

namespace moec::moe {

// What running a model's MoE layers depends on beside its input.
struct RouteContext {
  i64 rows = 1;           // N = rows * positions, row-major
  bool capacity = false;  // limit the tokens that an expert takes
  Tensor valid;           // bool[N]: what the statistics count; none: all
};

struct Routing {
  Tensor weights;  // f32[N,k]; 0 where capacity dropped the choice
  Tensor indices;  // i32[N,k]
  Tensor gate;     // f32[N,E]: the weights at their experts, else 0
  Tensor probs;    // f32[N,E]: softmax over all experts
  Tensor dropped;  // f32[N,1]: weight that capacity dropped; none without
  // Load balancing loss E * sum_e f_e P_e (Shazeer et al. 2017; Fedus et al.
  // 2021), f the share of choices (aux_top1: of first choices) that expert e
  // got and P its mean probability; z-loss mean(logsumexp(logits)^2) (Zoph et
  // al. 2022). f32[].
  Tensor aux, z;
  Tensor load;  // i32[E]: choices per expert, before capacity
};

struct Router {
  Router() = default;
  Router(At at, const Config& c);
  Routing operator()(Tensor x, const RouteContext& context) const;  // [N,d]

  MoeConfig moe;
  Linear proj, noise;  // d -> E; `noise` only for noise = "softplus"

 private:
  Tensor logits(Tensor x) const;
  void losses(Routing& r, Tensor logits, Tensor probs,
              const RouteContext& context) const;
};

// Slots of each expert for `tokens` tokens (of a row, or of the batch).
i64 capacity_slots(const MoeConfig& m, i64 tokens);

// Router, experts and shared experts: x [N,d] -> [N,d].
struct Moe {
  Moe() = default;
  Moe(At at, const Config& c);
  Tensor operator()(Tensor x, const RouteContext& context,
                    Routing& routing) const;

  Router router;
  Experts experts;
  bool pass_overflow = false, has_shared = false;
  DenseFfn shared;
};

}  // namespace moec::moe
