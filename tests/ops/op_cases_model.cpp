// Rows for matrix products, norms, attention, routing, losses, randomness and
// the optimizer.
#include "tests/ops/op_rows.h"

namespace moec {
namespace {

OpCase with_tolerance(OpCase c, double tolerance) {
  c.tolerance = tolerance;
  return c;
}

// Gradients of attention need o and lse that belong to q, k and v.
OpCase attention_grad_case(std::string name, std::vector<OpInput> in,
                           AttrList attrs) {
  OpCase c{std::move(name), Op::AttentionGrad, std::move(in), nullptr};
  c.build = [attrs](Builder& b, In in) {
    Values operands = {in[0], in[1], in[2]};
    if (in.size() > 4) operands.push_back(in[4]);
    Node* f = b.node(Op::Attention, operands, attrs);
    Values grad = {in[0], in[1], in[2], f->result(0), f->result(1), in[3]};
    if (in.size() > 4) grad.push_back(in[4]);
    return results(b.node(Op::AttentionGrad, grad, attrs));
  };
  c.tolerance = 1e-5;
  c.differentiable = false;
  return c;
}

void add_attention_cases(std::vector<OpCase>& all) {
  struct Variant {
    const char* name;
    i64 heads, kv_heads, queries, keys, width, value_width;
    AttrList attrs;
  };
  std::vector<Variant> variants = {
      {"full", 2, 2, 5, 5, 8, 8, {{"scale", 0.35}}},
      {"causal", 2, 2, 19, 19, 8, 8, {{"causal", true}, {"scale", 0.35}}},
      {"groups", 4, 2, 7, 7, 4, 6, {{"causal", true}, {"scale", 0.5}}},
      {"window", 2, 1, 9, 9, 4, 4, {{"causal", true}, {"window", i64(3)}}},
      {"decode", 4, 2, 1, 13, 8, 8, {{"causal", true}, {"scale", 0.35}}},
      {"layout",
       4,
       2,
       7,
       9,
       4,
       6,
       {{"causal", true}, {"scale", 0.5}, {"layout", std::string("bthd")}}},
      {"dropout",
       2,
       2,
       6,
       6,
       4,
       4,
       {{"causal", true}, {"dropout", 0.25}, {"stream", i64(3)}}},
  };
  for (const Variant& v : variants) {
    bool flipped = v.name == std::string("layout");
    auto dims = [&](i64 heads, i64 positions, i64 width) {
      return flipped ? Dims{2, positions, heads, width}
                     : Dims{2, heads, positions, width};
    };
    Dims q = dims(v.heads, v.queries, v.width);
    Dims k = dims(v.kv_heads, v.keys, v.width);
    Dims values = dims(v.kv_heads, v.keys, v.value_width);
    Dims o = dims(v.heads, v.queries, v.value_width);
    std::vector<OpInput> in = {f32(q, -2, 2), f32(k, -2, 2), f32(values)};
    std::vector<OpInput> grad_in = in;
    grad_in.push_back(f32(o));
    if (std::string(v.name) == "dropout") {
      in.push_back(key());
      grad_in.push_back(key());
    }
    std::string name = v.name;
    all.push_back(with_tolerance(
        row("attention/" + name, Op::Attention, in, v.attrs), 5e-6));
    all.push_back(
        attention_grad_case("attention_grad/" + name, grad_in, v.attrs));
  }
}

void add_routing_cases(std::vector<OpCase>& all) {
  all.push_back(row("top_k", Op::TopK, {f32({4, 3, 9})}, {{"k", i64(2)}}));
  all.push_back(row("top_k/all", Op::TopK, {f32({7, 4})}, {{"k", i64(4)}}));
  all.push_back(row("top_k/wide", Op::TopK, {f32({5, 64})}, {{"k", i64(8)}}));
  // Few distinct values: ties go to the lowest index.
  OpCase ties = constant_row(
      "top_k/ties", Op::TopK,
      {{Type{DType::F32, {2, 6}}, 0, 0, {1, 2, 2, 0, 2, 1, 0, 0, 0, 0, 0, 0}}},
      {{"k", i64(3)}});
  all.push_back(ties);
  for (const char* scope : {"row", "batch"})
    for (i64 capacity : {0, 2, 5})
      all.push_back(constant_row(
          std::string("capacity_keep/") + scope + std::to_string(capacity),
          Op::CapacityKeep, {i32({12, 2}, -1, 3)},
          {{"experts", i64(4)},
           {"capacity", capacity},
           {"rows", i64(3)},
           {"scope", std::string(scope)}}));
  all.push_back(constant_row("route", Op::Route, {i32({37, 2}, 0, 4)},
                             {{"experts", i64(5)}}));
  all.push_back(constant_row("route/keep", Op::Route,
                             {i32({37, 2}, -1, 4), boolean({37, 2})},
                             {{"experts", i64(5)}}));
  all.push_back(constant_row("route/one", Op::Route, {i32({3, 1}, 0, 0)},
                             {{"experts", i64(1)}}));
}

// Five choices of two experts each, one of them dropped; expert 1 has none.
void add_moe_cases(std::vector<OpCase>& all) {
  OpInput offsets = fixed_i32({0, 4, 4, 7, 9});
  OpInput perm = fixed_i32({0, 2, 5, 8, 1, 4, 9, 3, 7, -1});
  OpInput inverse = fixed_i32({0, 4, 1, 7, 5, 2, -1, 8, 3, 6});
  auto add = [&](const std::string& activation, bool gated, bool bias) {
    OpInput up = f32({4, 9, 6}), down = f32({4, 6, 9});
    std::vector<OpInput> in = {
        f32({5, 6}), statistics({5, 2}, 0.1, 1), offsets, perm, inverse, up,
        down};
    if (gated) in.push_back(up);
    if (bias) in.insert(in.end(), {f32({4, 9}), f32({4, 6})});
    if (bias && gated) in.push_back(f32({4, 9}));
    AttrList attrs = {{"activation", activation}};
    std::string suffix = "/" + activation + (bias ? "_bias" : "");
    // what is saved for the gradient is the backend's own affair
    OpCase c{"moe_ffn" + suffix, Op::MoeFfn, in, nullptr};
    c.build = [attrs](Builder& b, In in) {
      return Values{b.node(Op::MoeFfn, in, attrs)->result()};
    };
    c.tolerance = 5e-6;
    all.push_back(c);
    in.insert(in.begin(), f32({5, 6}));
    OpCase g{"moe_ffn_grad" + suffix, Op::MoeFfnGrad, in, nullptr};
    g.build = [attrs](Builder& b, In in) {
      Node* f = b.node(Op::MoeFfn, in.subspan(1), attrs);
      Values operands = {in[0], f->result(1)};
      operands.insert(operands.end(), in.begin() + 1, in.end());
      return results(b.node(Op::MoeFfnGrad, operands, attrs));
    };
    g.tolerance = 1e-5;
    g.differentiable = false;
    all.push_back(g);
  };
  add("gelu", false, true);
  add("relu", false, false);
  add("silu", false, false);
  add("swiglu", true, false);
  add("geglu", true, true);
  add("relu2_glu", true, false);
  add("gelu_bilinear", true, true);
}

// x [5,7], w [9,7]; the last target is ignored.
void add_loss_cases(std::vector<OpCase>& all) {
  OpInput targets = fixed_i32({3, 0, 36, 36, -1});
  OpInput lse = statistics({5}, 4, 5), dloss = statistics({5});
  all.push_back(
      row("cross_entropy", Op::CrossEntropy, {f32({5, 37}, -3, 3), targets}));
  all.push_back(row("cross_entropy_grad", Op::CrossEntropyGrad,
                    {f32({5, 37}, -3, 3), targets, lse, dloss}));
  for (bool bias : {false, true}) {
    std::vector<OpInput> in = {f32({5, 7}), f32({37, 7}), targets};
    std::vector<OpInput> grad = in;
    grad.push_back(lse);
    grad.push_back(dloss);
    if (bias) {
      in.push_back(f32({37}));
      grad.push_back(f32({37}));
    }
    std::string suffix = bias ? "/bias" : "";
    all.push_back(
        row("linear_cross_entropy" + suffix, Op::LinearCrossEntropy, in));
    all.push_back(row("linear_cross_entropy_grad" + suffix,
                      Op::LinearCrossEntropyGrad, grad));
    grad.erase(grad.begin() + 3);
    all.push_back(constant_row("linear_cross_entropy_both" + suffix,
                               Op::LinearCrossEntropyBoth, grad));
  }
}

}  // namespace

void add_matmul_cases(std::vector<OpCase>& all) {
  auto matmul = [&](const char* name, Dims a, Dims b, bool ta, bool tb,
                    double scale = 1) {
    all.push_back(
        row(std::string("matmul/") + name, Op::Matmul,
            {f32(std::move(a)), f32(std::move(b))},
            {{"transpose_a", ta}, {"transpose_b", tb}, {"scale", scale}}));
  };
  matmul("plain", {5, 7}, {7, 3}, false, false);
  matmul("odd", {33, 70}, {70, 47}, false, false);
  matmul("transpose_a", {7, 5}, {7, 3}, true, false);
  matmul("transpose_b", {17, 40}, {35, 40}, false, true, 0.5);
  matmul("transpose_both", {7, 5}, {3, 7}, true, true);
  matmul("one_row", {1, 37}, {37, 40}, false, false);
  matmul("one_column", {19, 37}, {37, 1}, false, false);
  matmul("batched", {2, 3, 5, 7}, {2, 3, 7, 4}, false, false);
  matmul("batched_transpose_b", {2, 3, 5, 7}, {2, 3, 4, 7}, false, true, 0.25);
  matmul("batched_transpose_a", {3, 7, 5}, {3, 7, 4}, true, false);
  matmul("shared_weights", {2, 3, 5, 7}, {7, 4}, false, false);
  matmul("shared_transposed", {3, 5, 7}, {4, 7}, false, true, 2);
  matmul("shared_transpose_a", {3, 7, 5}, {7, 4}, true, false);
  matmul("broadcast", {2, 1, 5, 7}, {3, 7, 4}, false, false);
  matmul("left_shared", {5, 7}, {2, 7, 4}, false, false);

  OpInput offsets = fixed_i32({0, 4, 4, 9, 11});  // an empty group; 2 rows over
  for (bool t : {false, true}) {
    std::string suffix = t ? "/transposed" : "";
    Dims w = t ? Dims{4, 18, 7} : Dims{4, 7, 18};
    all.push_back(row("grouped_matmul" + suffix, Op::GroupedMatmul,
                      {f32({13, 7}), f32(w), offsets}, {{"transpose_b", t}}));
    all.push_back(row("grouped_matmul/bias" + suffix, Op::GroupedMatmul,
                      {f32({13, 7}), f32(w), offsets, f32({4, 18})},
                      {{"transpose_b", t}}));
    all.push_back(row("grouped_matmul_dw" + suffix, Op::GroupedMatmulDw,
                      {f32({13, 7}), f32({13, 18}), offsets},
                      {{"transpose", t}}));
  }
}

void add_model_cases(std::vector<OpCase>& all) {
  AttrList last = {{"axis", i64(-1)}};
  all.push_back(row("softmax", Op::Softmax, {f32({4, 35}, -5, 5)}, last));
  all.push_back(row("softmax/middle", Op::Softmax, {f32({2, 6, 5}, -5, 5)},
                    {{"axis", i64(1)}}));
  all.push_back(row("softmax_grad", Op::SoftmaxGrad,
                    {f32({4, 35}, 0, 0.1), f32({4, 35})}, last));
  AttrList eps = {{"eps", 1e-5}};
  for (i64 d : {7, 48}) {
    std::string suffix = "/" + std::to_string(d);
    OpInput x = f32({2, 3, d}, -1, 2), w = f32({d}, 0.5, 1.5),
            dy = f32({2, 3, d});
    all.push_back(
        row("layer_norm" + suffix, Op::LayerNorm, {x, w, f32({d})}, eps));
    all.push_back(
        row("layer_norm_grad" + suffix, Op::LayerNormGrad, {x, w, dy}, eps));
    all.push_back(row("rms_norm" + suffix, Op::RmsNorm, {x, w}, eps));
    all.push_back(
        row("rms_norm_grad" + suffix, Op::RmsNormGrad, {x, w, dy}, eps));
  }

  all.push_back(row("rope", Op::Rope, {f32({2, 3, 5, 8})}));
  all.push_back(row("rope/inverse", Op::Rope, {f32({5, 16})},
                    {{"theta", 500.0}, {"inverse", true}}));
  all.push_back(row("rope/positions", Op::Rope,
                    {f32({2, 3, 4, 8}), fixed_i32({5, 0, 90, 17})}));
  all.push_back(row("rope/axis", Op::Rope,
                    {f32({2, 4, 3, 8}), i32({2, 4}, 0, 99)},
                    {{"axis", i64(-3)}}));
  all.push_back(row("rope/positions_by_row", Op::Rope,
                    {f32({2, 3, 4, 8}), i32({2, 4}, 0, 99)}));
  // e^mask, for a gradient without infinities.
  auto mask = [&](std::string name, Dims d, i64 window) {
    AttrList attrs = {{"window", window}};
    all.push_back(
        constant_row("causal_mask/" + name, Op::CausalMask, {f32(d)}, attrs));
    all.push_back({"causal_mask/exp_" + name,
                   Op::CausalMask,
                   {f32(d)},
                   [attrs](Builder& b, In in) {
                     return Values{b.exp(b.op(Op::CausalMask, {in[0]}, attrs))};
                   }});
  };
  mask("square", {2, 3, 7, 7}, 0);
  mask("window", {2, 9, 9}, 3);
  mask("cached", {3, 10}, 0);
  add_attention_cases(all);
  add_routing_cases(all);
  add_moe_cases(all);
  add_loss_cases(all);

  AttrList shape = {{"shape", std::vector<i64>{5, 70}}, {"stream", i64(9)}};
  all.push_back(
      constant_row("random_uniform", Op::RandomUniform, {key()}, shape));
  all.push_back(
      constant_row("random_normal", Op::RandomNormal, {key()}, shape));
  all.push_back(row("dropout", Op::Dropout, {f32({5, 70}), key()},
                    {{"p", 0.3}, {"stream", i64(4)}}));

  all.push_back(
      row("global_norm", Op::GlobalNorm, {f32({5, 33}), f32({7}), f32({})}));
  for (double step : {1.0, 100.0}) {
    auto scalar = [](double v) {
      return OpInput{Type{DType::F32, {}}, 0, 0, {v}};
    };
    Dims d = {3, 21};
    all.push_back(
        constant_row("adamw/step" + std::to_string(int(step)), Op::AdamW,
                     {f32(d), f32(d), f32(d, -0.1, 0.1), f32(d, 0.01, 0.1),
                      scalar(0.01), scalar(step), scalar(0.5)},
                     {{"beta2", 0.95}, {"weight_decay", 0.1}}));
  }
}

}  // namespace moec
