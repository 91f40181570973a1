#include "models/moe/router.h"

#include <algorithm>
#include <cmath>

namespace moec::moe {
using namespace dsl;

i64 capacity_slots(const MoeConfig& m, i64 tokens) {
  double share = double(tokens * m.top_k) / double(m.experts);
  // The small term keeps 1.1 * 10 from becoming 10.
  return std::clamp<i64>(i64(std::floor(m.capacity * share + 1e-9)), 1,
                         tokens * m.top_k);
}

Router::Router(At at, const Config& c) : moe(c.moe) {
  Inits init(c.model);
  i64 d = c.model.d_model;
  Init w = init.attention(d, moe.experts);
  proj = Linear(at, d, moe.experts, c.model.bias.router, w);
  if (moe.noise == "softplus")
    noise = Linear(at / "noise", d, moe.experts, c.model.bias.router, w);
}

// With the noise of training: makeMoE's N(0,1) softplus(W x), tiny_moe's
// N(0,1)/E, or Switch's jitter of the input by up to 1 %, each times
// noise_scale.
Tensor Router::logits(Tensor x) const {
  Tensor key = training_key();
  bool on = key && moe.noise != "none" && moe.noise_scale != 0;
  Dims shape{x.dim(0), moe.experts};
  if (on && moe.noise == "jitter") {
    Tensor u = random_uniform(key, x.type().dims, next_random_stream());
    x = x * ((u - 0.5) * (0.02 * moe.noise_scale) + 1.0);
  }
  Tensor l = proj(x).named("logits");
  if (!on || moe.noise == "jitter") return l;
  Tensor n = random_normal(key, shape, next_random_stream());
  if (moe.noise == "softplus")
    return l + n * softplus(noise(x)) * moe.noise_scale;
  return l + n * (moe.noise_scale / double(moe.experts));
}

void Router::losses(Routing& r, Tensor logits, Tensor probs,
                    const RouteContext& context) const {
  Tensor z = square(logsumexp(logits));
  Tensor chosen = r.indices, counted = r.indices;
  if (moe.aux_top1) counted = slice(counted, 1, 0, 1);
  i64 n = logits.dim(0);
  if (context.valid) {
    Tensor valid = reshape(context.valid, {n, 1});
    Tensor one = cast(context.valid, DType::F32);
    Tensor count = maximum(sum(one), 1.0);
    chosen = select(valid, chosen, -1.0);
    counted = moe.aux_top1 ? slice(chosen, 1, 0, 1) : chosen;
    Tensor f = cast(bincount(counted, moe.experts), DType::F32) /
               (count * double(counted.dim(1)));
    Tensor p = sum(probs * reshape(one, {n, 1}), {0}) / count;
    r.aux = sum(f * p) * double(moe.experts);
    r.z = sum(z * one) / count;
  } else {
    Tensor f = cast(bincount(counted, moe.experts), DType::F32) *
               (1.0 / double(n * counted.dim(1)));
    r.aux = sum(f * mean(probs, {0})) * double(moe.experts);
    r.z = mean(z);
  }
  r.load = bincount(chosen, moe.experts);
}

Routing Router::operator()(Tensor x, const RouteContext& context) const {
  Scope scope("router");
  Routing r;
  Tensor l = logits(x);
  Tensor probs = r.probs = softmax(l).named("probs");
  if (moe.gate == "topk_softmax") {
    auto [values, indices] = top_k(l, moe.top_k);
    r.weights = softmax(values);
    r.indices = indices;
  } else {
    auto [values, indices] = top_k(probs, moe.top_k);
    r.weights = values;
    r.indices = indices;
    if (moe.gate == "softmax_topk_renorm")
      r.weights = values / sum(values, {-1}, true);
  }
  r.indices.named("idx");
  r.weights.named("w");
  losses(r, l, probs, context);
  if (context.capacity) {
    bool per_row = moe.capacity_scope == "row";
    i64 n = x.dim(0);
    i64 slots = capacity_slots(moe, per_row ? n / context.rows : n);
    Tensor keep =
        capacity_keep(r.indices, {moe.experts, slots, context.rows, per_row});
    Tensor kept = r.weights * cast(keep.named("keep"), DType::F32);
    r.dropped = sum(r.weights - kept, {-1}, true);
    r.weights = kept;
  }
  r.gate = put_along(r.indices, r.weights, moe.experts).named("gate");
  return r;
}

Moe::Moe(At at, const Config& c)
    : router(at / "router", c),
      experts(at / "experts", c),
      pass_overflow(c.moe.overflow == "pass"),
      has_shared(c.moe.shared_experts > 0) {
  if (has_shared)
    shared = DenseFfn(at / "shared_expert", c.model, c.model.ffn,
                      c.model.d_ff * c.moe.shared_experts);
}

Tensor Moe::operator()(Tensor x, const RouteContext& context,
                       Routing& routing) const {
  Scope scope("moe");
  routing = router(x, context);
  Tensor out;
  {
    Scope inner("experts");
    out = experts(x, routing.gate).named("moe_out");
  }
  if (routing.dropped && pass_overflow) out = out + x * routing.dropped;
  if (has_shared) {
    Scope inner("shared");
    out = out + shared(x);
  }
  return out;
}

}  // namespace moec::moe
