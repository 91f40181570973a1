#include "models/moe/config_fields.h"

#include "support/error.h"

namespace moec::moe {
namespace {

constexpr double kBig = 1e12;  // no size or count is larger
const std::vector<std::string_view> kFfn = {
    "gelu", "relu", "silu", "swiglu", "geglu", "relu2_glu", "gelu_bilinear"};

void model_fields(ModelConfig& m, std::vector<Field>& out) {
  auto add = [&](Field f) {
    f.section = "model";
    out.push_back(std::move(f));
  };
  add({"", "vocab", &m.vocab, 0, 1 << 30});
  add({"", "d_model", &m.d_model, 1, 1 << 20});
  add({"", "n_layers", &m.n_layers, 1, 4096});
  add({"", "n_heads", &m.n_heads, 1, 1 << 16});
  add({"", "n_kv_heads", &m.n_kv_heads, 0, 1 << 16});
  add({"", "d_head", &m.d_head, 0, 1 << 16});
  add({"", "d_value", &m.d_value, 0, 1 << 16});
  add({"", "d_ff", &m.d_ff, 1, 1 << 20});
  add({"", "norm", &m.norm, 0, 0, {"rms", "layer"}});
  add({"", "norm_eps", &m.norm_eps, 0, 1});
  add({"", "pos", &m.pos, 0, 0, {"rope", "learned", "none"}});
  add({"", "rope_theta", &m.rope_theta, 1e-6, kBig});
  add({"", "window", &m.window, 0, kBig});
  add({"", "ffn", &m.ffn, 0, 0, kFfn});
  add({"", "dense_ffn", &m.dense_ffn, 0, 0, kFfn});
  add({"", "d_ff_dense", &m.d_ff_dense, 0, 1 << 20});
  add({"", "bias", &m.bias});
  add({"", "tied", &m.tied});
  add({"", "pad", &m.pad, -1, 1 << 30});
  add({"", "dropout", &m.dropout, 0, 0.999});
  add({"", "qk_norm", &m.qk_norm, 0, 0, {"none", "head", "full"}});
  add({"", "moe_every", &m.moe_every, 1, kBig});
  add({"", "moe_layers", &m.moe_layers, 0, 4095});
  add({"", "residual_ffn", &m.residual_ffn});
  add({"", "init", &m.init, 0, 0, {"normal", "scaled", "xavier"}});
}

void moe_fields(MoeConfig& m, std::vector<Field>& out) {
  auto add = [&](Field f) {
    f.section = "moe";
    out.push_back(std::move(f));
  };
  add({"", "experts", &m.experts, 0, 1 << 16});
  add({"", "top_k", &m.top_k, 0, 1 << 16});
  add({"",
       "gate",
       &m.gate,
       0,
       0,
       {"topk_softmax", "softmax_topk", "softmax_topk_renorm"}});
  add({"",
       "noise",
       &m.noise,
       0,
       0,
       {"none", "softplus", "gaussian", "jitter"}});
  add({"", "noise_scale", &m.noise_scale, 0, kBig});
  add({"", "capacity", &m.capacity, 0, 1e6});
  add({"", "capacity_scope", &m.capacity_scope, 0, 0, {"row", "batch"}});
  add({"", "overflow", &m.overflow, 0, 0, {"drop", "pass"}});
  add({"", "eval_capacity", &m.eval_capacity});
  add({"", "aux_coef", &m.aux_coef, 0, kBig});
  add({"", "aux_top1", &m.aux_top1});
  add({"", "z_coef", &m.z_coef, 0, kBig});
  add({"", "shared_experts", &m.shared_experts, 0, 1024});
}

void train_fields(TrainConfig& t, std::vector<Field>& out) {
  auto add = [&](Field f) {
    f.section = "train";
    out.push_back(std::move(f));
  };
  add({"", "batch", &t.batch, 1, 1 << 24});
  add({"", "seq", &t.seq, 1, 1 << 24});
  add({"", "steps", &t.steps, 0, kBig});
  add({"", "lr", &t.lr, 0, 1e3});
  add({"", "min_lr", &t.min_lr, 0, 1e3});
  add({"", "warmup", &t.warmup, 0, kBig});
  add({"", "schedule", &t.schedule, 0, 0, {"constant", "cosine", "trapezoid"}});
  add({"", "beta1", &t.beta1, 0, 0.999999});
  add({"", "beta2", &t.beta2, 0, 0.999999});
  add({"", "eps", &t.eps, 0, 1});
  add({"", "weight_decay", &t.weight_decay, 0, 1e3});
  add({"", "decay", &t.decay, 0, 0, {"all", "matrices"}});
  add({"", "clip", &t.clip, 0, kBig});
  add({"", "seed", &t.seed, 0, 9e18});
  add({"", "dtype", &t.dtype, 0, 0, {"f32", "bf16"}});
  add({"", "accumulate", &t.accumulate, 1, 1 << 20});
  add({"", "eval_every", &t.eval_every, 0, kBig});
  add({"", "eval_batches", &t.eval_batches, 0, kBig});
  add({"", "save_every", &t.save_every, 0, kBig});
  add({"", "keep", &t.keep, 0, kBig});
}

}  // namespace

std::vector<Field> fields(Config& c) {
  std::vector<Field> out;
  model_fields(c.model, out);
  moe_fields(c.moe, out);
  out.push_back({"data", "path", &c.data.path});
  out.push_back({"data", "field", &c.data.field});
  out.push_back({"data", "prompt", &c.data.prompt});
  out.push_back({"data", "eos", &c.data.eos});
  out.push_back({"data", "tokenizer", &c.data.tokenizer});
  out.push_back({"data", "val_fraction", &c.data.val_fraction, 0, 0.99});
  train_fields(c.train, out);
  out.push_back({"mesh", "axes", &c.mesh.axes, 1, 1 << 20});
  out.push_back({"mesh", "rules", &c.mesh.rules});
  out.push_back({"compile", "fuse", &c.compile.fuse});
  out.push_back(
      {"compile", "moe", &c.compile.moe, 0, 0, {"fused", "grouped", "dense"}});
  out.push_back({"compile", "remat", &c.compile.remat});
  return out;
}

Field find_field(Config& config, std::string_view name) {
  for (auto& f : fields(config))
    if (name.starts_with(f.section) &&
        name.substr(f.section.size(), 1) == "." &&
        name.substr(f.section.size() + 1) == f.key)
      return f;
  MOEC_CHECK(false, "no key {}", name);
  return {};
}

}  // namespace moec::moe
