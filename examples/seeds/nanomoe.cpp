// NanoMoE in the DSL; nanomoe.toml has the same model as a config, and says
// what differs from the original.
#include "examples/seeds/common.h"

using namespace seeds;
constexpr i64 kD = 128, kHidden = 512, kExperts = 4, kTopK = 2;
constexpr i64 kSeq = 128, kVocab = 65;
const Init kXavier = uniform(std::sqrt(6.0 / (kD + kD)));

struct Moe {
  explicit Moe(At at)
      : router(at / "router", kD, kExperts, false, kXavier),
        up(at / "up", kExperts, kD, kHidden, true, normal(std::sqrt(2.0 / kD))),
        down(at / "down", kExperts, kHidden, kD, true,
             normal(std::sqrt(2.0 / kHidden))) {}
  Tensor operator()(Tensor x, Tensor& aux) const {
    i64 n = x.dim(0) * x.dim(1);
    Tensor logits = router(reshape(x, {n, kD}));
    auto [values, chosen] = top_k(logits, kTopK);
    Tensor y = down(gelu(up(reshape(x, {1, n, kD}))));
    // Balance counts first choices, and sums over the layers.
    Tensor f = shares(slice(chosen, 1, 0, 1), kExperts);
    Tensor l = sum(f * mean(softmax(logits), {0})) * double(kExperts);
    aux = aux ? aux + l : l;
    return reshape(mix(y, chosen, softmax(values)), x.type().dims);
  }
  Linear router;
  Stack up, down;
};

int main() {
  Parameters params;
  At at(params);
  Embedding embed(at / "embed", kVocab, kD);
  Parameter positions = at.parameter("positions", {kSeq, kD}, normal(0.02));
  Heads heads{kD, 4, 4, 32, 32, true, true, false, 0.1, kXavier, kXavier};
  std::vector<Block<LayerNorm, Moe>> blocks;
  for (int i = 0; i < 4; ++i) blocks.emplace_back(at / i, heads, 1e-6);
  LayerNorm norm(at / "norm", kD);
  Linear head(at / "head", kD, kVocab, true);
  std::printf("%d parameters\n", int(params.count()));
  if (params.count() != 2409025) return 1;
  return train(
      params,
      [&](Tensor tokens, Tensor& aux) {
        Dropout drop{0.1};
        Tensor x = drop(embed(tokens) + slice(positions, 0, 0, tokens.dim(1)));
        for (auto& b : blocks) {
          x = x + drop(b.attn(b.norm1(x)));
          x = x + drop(b.moe(b.norm2(x), aux));
        }
        return head(norm(x));
      },
      {.lr = 3e-3, .aux_coef = 0.01});
}
