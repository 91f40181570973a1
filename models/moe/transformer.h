// The transformer of all configs: tokens -> features -> logits.
#pragma once
#include <variant>
#include <vector>

#include "models/moe/attention.h"
#include "models/moe/router.h"

namespace moec::moe {

// LayerNorm or RMSNorm, by the config.
struct Norm {
  Norm() = default;
  Norm(At at, const ModelConfig& m);
  Tensor operator()(Operand x) const;
  std::variant<dsl::RmsNorm, dsl::LayerNorm> norm;
};

// x + attn(norm1(x)), then x + ffn(norm2(x)).
struct Block {
  Block(At at, const Config& c, i64 layer);
  // x [B,T,d]. MoE blocks append to `routings`.
  Tensor operator()(Tensor x, const RouteContext& context,
                    std::vector<Routing>& routings, KvContext* cache) const;

  i64 layer;
  bool is_moe, residual_ffn;
  Norm norm1, norm2;
  Attention attn;
  Moe moe;
  DenseFfn ffn;
  dsl::Dropout dropout;
};

struct Features {
  Tensor x;                       // [B,T,d], after the last norm
  std::vector<Routing> routings;  // one per MoE layer
};

struct EncodeOptions {
  bool capacity = false;  // apply the config's capacity, if it has one
  Tensor valid;           // bool[B*T]: see RouteContext
  KvContext* cache = nullptr;
};

class Transformer {
 public:
  // config.model.vocab must be known (> 0).
  explicit Transformer(const Config& config);
  Transformer(const Transformer&) = delete;

  const Config& config() const { return config_; }
  const dsl::Parameters& parameters() const { return params_; }
  // Functions made from now on take the weight matrices, but for the
  // router's, in `dtype`; not for training.
  void store_weights(DType dtype);

  // tokens i32[B,T], T <= train.seq where positions are learned.
  Features encode(Tensor tokens, const EncodeOptions& options = {}) const;
  // [..., d] -> [..., vocab].
  Tensor decode(Tensor features) const;

 private:
  Tensor embed(Tensor tokens) const;

  Config config_;
  dsl::Parameters params_;
  dsl::Embedding embed_;
  Parameter positions_;  // [seq, d] or none
  std::vector<Block> blocks_;
  Norm norm_;
  Linear head_;  // none where tied
  dsl::Dropout dropout_;
};

struct Losses {
  // f32[]: ce is the mean over targets >= 0; aux and z are sums over the MoE
  // layers, unscaled; loss = ce + aux_coef aux + z_coef z.
  Tensor loss, ce, aux, z;
};
// targets i32[B,T]; -1 is ignored.
Losses losses(const Transformer& model, const Features& features,
              Tensor targets);

}  // namespace moec::moe
