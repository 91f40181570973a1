#include "tests/models/small.h"

#include <algorithm>
#include <cmath>

#include "support/rng.h"

namespace moec::moe {

namespace {

uint64_t hash_name(const std::string& name) {
  uint64_t h = 1469598103934665603u;
  for (char c : name) h = (h ^ uint64_t(c)) * 1099511628211u;
  return h;
}

}  // namespace

Config small_config(const std::vector<std::string>& overrides) {
  return parse_config(R"([model]
vocab = 11
d_model = 8
n_layers = 2
n_heads = 2
d_ff = 12
[moe]
experts = 4
top_k = 2
aux_coef = 0.1
z_coef = 0.01
[train]
batch = 2
seq = 6
)",
                      "small", overrides);
}

SmallModel::SmallModel(const Config& c, const std::string& device)
    : SmallModel(c, EngineOptions{.device = device}) {}

SmallModel::SmallModel(const Config& c, const EngineOptions& options)
    : config(c), model(c), engine(options) {
  init_parameters(state, model.parameters(), 1);
  for (auto& p : model.parameters().all()) {
    auto values = state.f32(p.name);
    uint64_t stream = hash_name(p.name);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] += 0.4f * normal_from_word(random_word(7, stream, int64_t(i)));
  }
}

Function SmallModel::function(std::string_view name, i64 rows, i64 seq) {
  auto f = engine.compile(make_function(model, name, rows, seq));
  f.bind(state);
  return f;
}

std::vector<float> SmallModel::logits(const std::vector<int32_t>& tokens,
                                      i64 rows) {
  auto f = function("logits", rows, i64(tokens.size()) / rows);
  std::ranges::copy(tokens, f.input<int32_t>("tokens").begin());
  f.run();
  auto out = f.output<float>("logits");
  return {out.begin(), out.end()};
}

std::vector<int32_t> random_ids(i64 count, i64 vocab, uint64_t seed) {
  std::vector<int32_t> ids;
  for (i64 i = 0; i < count; ++i)
    ids.push_back(
        int32_t(uint64_t(random_word(seed, 5, i)) * uint64_t(vocab) >> 32));
  return ids;
}

double difference(std::span<const float> a, std::span<const float> b) {
  double worst = 0, size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(double(a[i]) - b[i]));
    size = std::max(size, std::abs(double(a[i])));
  }
  return a.size() == b.size() ? worst / size : INFINITY;
}

std::vector<std::vector<std::string>> variants() {
  return {
      {},
      {"model.norm=layer", "model.pos=learned", "model.ffn=gelu",
       "model.bias=true", "moe.aux_top1=true"},
      {"moe.gate=softmax_topk", "model.n_kv_heads=1", "model.tied=true",
       "model.qk_norm=head"},
      {"moe.gate=softmax_topk_renorm", "moe.capacity=1.0", "model.ffn=geglu",
       "model.window=3", "model.qk_norm=full"},
      {"moe.capacity=0.6", "moe.capacity_scope=batch", "moe.overflow=pass",
       "model.ffn=relu2_glu", "model.d_value=6"},
      {"moe.capacity=0.5", "model.moe_every=2", "model.dense_ffn=relu",
       "model.d_ff_dense=10", "moe.shared_experts=1", "model.ffn=gelu_bilinear",
       "model.residual_ffn=false"},
      {"model.bias=[\"attn_out\", \"router\", \"head\"]", "moe.noise=softplus",
       "model.ffn=relu", "model.pos=none", "model.dropout=0.1"},
      {"moe.noise=gaussian", "model.ffn=silu", "model.moe_layers=[1]",
       "model.init=scaled", "model.d_head=6", "moe.capacity=0.7",
       "moe.capacity_scope=batch"},
      {"moe.noise=jitter", "model.init=xavier", "moe.top_k=1",
       "moe.capacity=0.8", "moe.overflow=pass", "moe.gate=softmax_topk"},
      {"moe.experts=0", "moe.aux_coef=0", "moe.z_coef=0"},
  };
}

}  // namespace moec::moe
