// The Haiku references in the DSL; jax_moe.toml has the same model as a config,
// and says what differs from the originals.
#include "examples/seeds/common.h"

using namespace seeds;
constexpr i64 kD = 128, kHidden = 256, kExperts = 8, kTopK = 2, kVocab = 65;

// An expert takes half of all tokens; the rest of its weight passes x through.
struct Moe {
  explicit Moe(At at)
      : router(at / "router", kD, kExperts, true),
        gate(at / "gate", kExperts, kD, kHidden, false, normal(0.02)),
        up(at / "up", kExperts, kD, kHidden, false, normal(0.02)),
        down(at / "down", kExperts, kHidden, kD, false, normal(0.02)) {}
  Tensor operator()(Tensor x) const {
    i64 rows = x.dim(0), n = rows * x.dim(1);
    Tensor flat = reshape(x, {n, kD}), xs = reshape(x, {1, n, kD});
    auto [values, chosen] = top_k(router(flat), kTopK);
    Tensor keep = capacity_keep(chosen, {kExperts, n / 2, rows, false});
    Tensor all = softmax(values), kept = all * cast(keep, DType::F32);
    Tensor y = down(gelu(gate(xs) * up(xs)));
    Tensor out = mix(y, chosen, kept) + flat * sum(all - kept, {-1}, true);
    return reshape(out, x.type().dims);
  }
  Linear router;
  Stack gate, up, down;
};

int main() {
  Parameters params;
  At at(params);
  Embedding embed(at / "embed", kVocab, kD);
  Heads heads{kD, 8, 2, 16, 24, false, false, true};
  std::vector<Block<RmsNorm, Moe>> blocks;
  for (int i = 0; i < 4; ++i) blocks.emplace_back(at / i, heads, 1e-5);
  RmsNorm norm(at / "norm", kD, 1e-5);
  auto encode = [&](Tensor tokens) {
    Tensor x = embed(tokens);
    for (auto& b : blocks) {
      x = x + b.attn(b.norm1(x));
      x = b.moe(b.norm2(x));  // no residual here
    }
    return norm(x);
  };
  auto decode = [&](Tensor features) {
    return matmul(features, embed.weight, {.transpose_b = true});
  };
  return train(params,
               [&](Tensor tokens, Tensor&) { return decode(encode(tokens)); },
               {.steps = 60, .lr = 3e-3, .clip = 1});
}
