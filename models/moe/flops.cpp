#include "models/moe/flops.h"

#include "models/moe/ffn.h"

namespace moec::moe {

double active_weights(const Config& c) {
  auto& m = c.model;
  double d = double(m.d_model), w = double(m.vocab) * d;
  auto ffn = [&](const std::string& kind, i64 width) {
    return (is_gated(kind) ? 3 : 2) * d * double(width);
  };
  for (i64 l = 0; l < m.n_layers; ++l) {
    w += d * double(m.n_heads * m.d_head + m.n_kv_heads * m.d_head +
                    m.n_kv_heads * m.d_value + m.n_heads * m.d_value);
    if (c.is_moe_layer(l))
      w += d * double(c.moe.experts) +
           double(c.moe.top_k + c.moe.shared_experts) * ffn(m.ffn, m.d_ff);
    else
      w += ffn(m.dense_ffn, m.d_ff_dense);
  }
  return w;
}

i64 active_parameters(const Config& c, const dsl::Parameters& params) {
  i64 n = 0;
  for (auto& p : params.all()) {
    i64 size = Type{DType::F32, p.dims}.numel();
    bool expert = p.name.find(".experts.") != std::string::npos;
    n += expert ? size / c.moe.experts * c.moe.top_k : size;
  }
  return n;
}

double train_flops_per_token(const Config& c) {
  auto& m = c.model;
  return 6 * active_weights(c) + 3.0 * double(m.n_heads) *
                                     double(m.d_head + m.d_value) *
                                     double(c.train.seq) * double(m.n_layers);
}

}  // namespace moec::moe
