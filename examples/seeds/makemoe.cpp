// makeMoE-JAX in the DSL; makemoe.toml has the same model as a config, and says
// what differs from the original.
#include "examples/seeds/common.h"

using namespace seeds;
constexpr i64 kD = 128, kHidden = 4 * kD, kExperts = 8, kTopK = 2;
constexpr i64 kSeq = 64, kVocab = 65;

// Noisy top-k: N(0,1) softplus(W x) on the logits, in training alone.
struct Moe {
  explicit Moe(At at)
      : router(at / "router", kD, kExperts, true),
        noise(at / "noise", kD, kExperts, true),
        up(at / "up", kExperts, kD, kHidden, true, normal(0.02)),
        down(at / "down", kExperts, kHidden, kD, true, normal(0.02)) {}
  Tensor operator()(Tensor x) const {
    i64 n = x.dim(0) * x.dim(1);
    Tensor flat = reshape(x, {n, kD}), logits = router(flat);
    if (Tensor key = training_key())
      logits =
          logits + softplus(noise(flat)) *
                       random_normal(key, {n, kExperts}, next_random_stream());
    auto [values, chosen] = top_k(logits, kTopK);
    Tensor y = down(relu(up(reshape(x, {1, n, kD}))));
    return reshape(mix(y, chosen, softmax(values)), x.type().dims);
  }
  Linear router, noise;
  Stack up, down;
};

int main() {
  Parameters params;
  At at(params);
  Embedding embed(at / "embed", kVocab, kD);
  Parameter positions = at.parameter("positions", {kSeq, kD}, normal(0.02));
  Heads heads{kD, 8, 8, 16, 16, false, true, false, 0.1};
  std::vector<Block<LayerNorm, Moe>> blocks;
  for (int i = 0; i < 4; ++i) blocks.emplace_back(at / i, heads, 1e-6);
  LayerNorm norm(at / "norm", kD);
  Linear head(at / "head", kD, kVocab, true);
  std::printf("%d parameters\n", int(params.count()));
  if (params.count() != 4512897) return 1;
  return train(params,
               [&](Tensor tokens, Tensor&) {
                 Dropout drop{0.1};
                 Tensor x =
                     embed(tokens) + slice(positions, 0, 0, tokens.dim(1));
                 for (auto& b : blocks) {
                   x = x + drop(b.attn(b.norm1(x)));
                   x = x + drop(b.moe(b.norm2(x)));
                 }
                 return head(norm(x));
               },
               {.lr = 3e-3});
}
