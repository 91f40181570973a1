// tiny_moe in the DSL; tiny_moe.toml has the same model as a config, and says
// what differs from the original.
#include "examples/seeds/common.h"

using namespace seeds;
constexpr i64 kD = 576, kHidden = 1536, kExperts = 8, kTopK = 2;
const Init kIn = normal(0.02), kOut = normal(0.02 / 2);  // 0.02 (2 layers)^-1/2
const Heads kHeads{kD, 9, 3, 64, 64, false, false, true, 0, kIn, kOut};

struct Moe {
  explicit Moe(At at)
      : router(at / "router", kD, kExperts, false),
        gate(at / "gate", kExperts, kD, kHidden, false, kIn),
        up(at / "up", kExperts, kD, kHidden, false, kIn),
        down(at / "down", kExperts, kHidden, kD, false, kOut) {}
  Tensor operator()(Tensor x, Tensor& aux) const {
    i64 rows = x.dim(0), n = rows * x.dim(1);
    Tensor logits = router(reshape(x, {n, kD})), xs = reshape(x, {1, n, kD});
    if (Tensor key = training_key())
      logits =
          logits + random_normal(key, {n, kExperts}, next_random_stream()) *
                       (1.0 / kExperts);
    Tensor probs = softmax(logits);
    auto [values, chosen] = top_k(probs, kTopK);
    i64 slots = x.dim(1) * kTopK * 11 / (10 * kExperts);
    Tensor keep = capacity_keep(chosen, {kExperts, slots, rows, true});
    aux = sum(shares(chosen, kExperts) * mean(probs, {0})) * double(kExperts);
    Tensor y = down(silu(gate(xs)) * up(xs));
    Tensor out = mix(y, chosen, values * cast(keep, DType::F32));
    return reshape(out, x.type().dims);
  }
  Linear router;
  Stack gate, up, down;
};

// A block of experts, then one of a dense GLU.
struct TinyMoe {
  TinyMoe(At at, i64 vocab)
      : embed(at / "embed", vocab, kD),
        attn0(at / "attn0", kHeads),
        attn1(at / "attn1", kHeads),
        moe(at / "moe"),
        gate(at / "gate", kD, kHidden, false),
        up(at / "up", kD, kHidden, false),
        down(at / "down", kHidden, kD, false, kOut) {
    for (int i = 0; i < 5; ++i) norm.push_back({at / "norm" / i, kD});
  }
  Tensor operator()(Tensor tokens, Tensor& aux) const {
    Tensor x = embed(tokens);
    x = x + attn0(norm[0](x));
    x = x + moe(norm[1](x), aux);
    x = x + attn1(norm[2](x));
    Tensor h = norm[3](x);
    x = x + down(silu(gate(h)) * up(h));
    return matmul(norm[4](x), embed.weight, {.transpose_b = true});
  }
  Embedding embed;
  Attention attn0, attn1;
  Moe moe;
  Linear gate, up, down;
  std::vector<RmsNorm> norm;
};

int main() {
  Parameters full, small;
  TinyMoe at_full_size(At(full), 50304), model(At(small), 65);
  std::printf("%d parameters\n", int(full.count()));
  if (full.count() != 54639936) return 1;
  return train(small, model, {.steps = 20, .aux_coef = 0.01, .clip = 1});
}
