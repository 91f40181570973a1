// What the seeds' models share in the DSL: attention, stacks of experts, and a
// short training run.
#pragma once
#include <moec/moec.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "models/moe/chronicle.h"
#include "models/moe/schedule.h"
#include "runtime/token_source.h"
#include "tokenizer/tokenizer.h"

namespace seeds {

using namespace moec;
using namespace moec::dsl;

struct Heads {
  i64 d, heads, groups, key, value;  // queries, keys and values, their widths
  bool qkv_bias = false, out_bias = false;
  bool rope = false;
  double dropout = 0;
  Init in = normal(0.02), out = normal(0.02);
};

// Causal attention; key and value head g serves heads / groups query heads.
struct Attention {
  Attention(At at, const Heads& h)
      : heads(h),
        q(at / "q", h.d, h.heads * h.key, h.qkv_bias, h.in),
        k(at / "k", h.d, h.groups * h.key, h.qkv_bias, h.in),
        v(at / "v", h.d, h.groups * h.value, h.qkv_bias, h.in),
        o(at / "o", h.heads * h.value, h.d, h.out_bias, h.out) {}

  // [B,T,n*w] -> [B,groups,n/groups,T,w]
  Tensor split(Tensor x, i64 n, bool turn) const {
    i64 b = x.dim(0), t = x.dim(1), w = x.dim(2) / n, g = heads.groups;
    Tensor s = transpose(reshape(x, {b, t, n, w}), {0, 2, 1, 3});
    if (turn) s = rope(s, 1e4);
    return reshape(s, {b, g, n / g, t, w});
  }
  Tensor operator()(Tensor x) const {
    i64 b = x.dim(0), t = x.dim(1), n = heads.heads, u = heads.value;
    Tensor qs = split(q(x), n, heads.rope);
    Tensor ks = split(k(x), heads.groups, heads.rope);
    Tensor vs = split(v(x), heads.groups, false);
    double scale = 1 / std::sqrt(double(heads.key));
    Tensor s = matmul(qs, ks, {.transpose_b = true, .scale = scale});
    Tensor p = Dropout{heads.dropout}(softmax(causal_mask(s)));
    Tensor y = transpose(reshape(matmul(p, vs), {b, n, t, u}), {0, 2, 1, 3});
    return o(reshape(y, {b, t, n * u}));
  }

  Heads heads;
  Linear q, k, v, o;
};

// E linear maps: x [1 or E,N,in] -> [E,N,out].
struct Stack {
  Parameter weight, bias;  // [E,out,in], [E,out] or none
  Stack(At at, i64 experts, i64 in, i64 out, bool with_bias, Init init)
      : weight(at.parameter("weight", {experts, out, in}, init)) {
    if (with_bias) bias = at.parameter("bias", {experts, out}, zeros());
  }
  Tensor operator()(Tensor x) const {
    Tensor y = matmul(x, weight, {.transpose_b = true});
    if (!bias) return y;
    return y + reshape(bias, {y.dim(0), 1, y.dim(2)});
  }
};

// The sum of y [E,N,d] by the weights [N,k] of the chosen experts [N,k]: what
// the compiler turns into work for the chosen alone.
inline Tensor mix(Tensor y, Tensor chosen, Tensor weights) {
  i64 experts = y.dim(0), n = y.dim(1);
  Tensor gate = transpose(put_along(chosen, weights, experts), {1, 0});
  return sum(y * reshape(gate, {experts, n, 1}), {0});
}

// Shares of the choices [N,j] that go to each expert, f32[E].
inline Tensor shares(Tensor chosen, i64 experts) {
  return cast(bincount(chosen, experts), DType::F32) *
         (1.0 / double(chosen.type().numel()));
}

// Attention and experts with a norm before each.
template <class Norm, class Moe>
struct Block {
  Block(At at, const Heads& h, double eps)
      : norm1(at / "norm1", h.d, eps),
        norm2(at / "norm2", h.d, eps),
        attn(at / "attn", h),
        moe(at / "moe") {}
  Norm norm1, norm2;
  Attention attn;
  Moe moe;
};

struct Run {
  i64 batch = 4, seq = 64, steps = 30, vocab = 65;
  double lr = 1e-3, aux_coef = 0, clip = 0;
};

// Trains `model`, tokens -> logits [B,T,vocab], which adds to a loss of its
// own, on the text that moec carries; 0 if the loss falls by a nat.
template <class Model>
int train(const Parameters& params, const Model& model, const Run& r) {
  auto graph = trace("train_step", params, [&] {
    Tensor tokens = input("tokens", DType::I32, {r.batch, r.seq});
    Tensor targets = input("targets", DType::I32, {r.batch, r.seq});
    Tensor lr = input("lr", DType::F32, {});
    Tensor step = input("step", DType::F32, {});
    Tensor key = input("key", DType::U32, {2});
    Tensor ce;
    auto [loss, grads] = value_and_grad([&] {
      Training on(key);
      i64 n = r.batch * r.seq;
      Tensor aux, logits = model(tokens, aux);
      ce = mean(
          cross_entropy(reshape(logits, {n, r.vocab}), reshape(targets, {n})));
      return aux ? ce + aux * r.aux_coef : ce;
    });
    AdamWStep update =
        adamw(params, grads, lr, step, {.weight_decay = 0.1, .clip = r.clip});
    Outputs outputs = update.outputs;
    outputs.push_back({"ce", ce});
    return outputs;
  });
  moe::State state;
  moe::init_parameters(state, params, /*seed=*/1);
  moe::Engine engine(moe::EngineOptions{});
  moe::Function f = engine.compile(std::move(graph));
  for (auto& spec : f.inputs())
    if (spec.name.starts_with("adamw.")) state.add(spec);
  f.bind(state);

  std::string text = moe::chronicle({.bytes = 100000});
  auto ids = Tokenizer::chars(text).encode(text);
  TrainWindows windows(TokenSource({ids.begin(), ids.end()}), r.seq, 1);
  float first = 0, last = 0;
  for (i64 i = 0; i < r.steps; ++i) {
    TokenBatch batch = windows.batch(i, r.batch);
    std::ranges::copy(batch.tokens, f.input<int32_t>("tokens").begin());
    std::ranges::copy(batch.targets, f.input<int32_t>("targets").begin());
    std::ranges::copy(moe::step_key(1, i, 0), f.input<uint32_t>("key").begin());
    f.input<float>("lr")[0] = float(r.lr);
    f.input<float>("step")[0] = float(i + 1);
    f.run();
    last = f.output<float>("ce")[0];
    if (i == 0) first = last;
    if (i % 10 == 9) std::printf("step %2d  loss %.4f\n", int(i + 1), last);
  }
  return last < first - 1 ? 0 : 1;
}

}  // namespace seeds
