// Rows for what generation runs: caches, few rows, weights stored in bf16.
#include "tests/ops/op_rows.h"

namespace moec {
namespace {

OpInput stored_bf16(Dims d) {
  OpInput in{Type{DType::BF16, std::move(d)}};
  return in;
}

void add_cache_cases(std::vector<OpCase>& all) {
  struct Variant {
    const char* name;
    i64 heads, kv_heads, queries, length, width, value_width, window;
    std::vector<double> start;
  };
  const std::vector<Variant> variants = {
      {"one", 2, 2, 1, 9, 8, 8, 0, {0, 8}},
      {"groups", 6, 2, 1, 33, 20, 9, 0, {16, 31}},
      {"five", 5, 1, 1, 20, 4, 70, 0, {19, 3}},
      {"window", 2, 1, 1, 50, 4, 4, 7, {49, 5}},
      {"queries", 4, 2, 3, 24, 8, 6, 0, {0, 20}},
      {"chunks", 4, 2, 1, 300, 8, 12, 0, {299, 130}},
      {"chunks_window", 3, 1, 2, 300, 8, 4, 40, {280, 0}},
  };
  for (const Variant& v : variants) {
    OpCase c =
        row(std::string("cached_attention/") + v.name, Op::CachedAttention,
            {f32({2, v.queries, v.heads, v.width}, -2, 2),
             f32({2, v.length, v.kv_heads, v.width}, -2, 2),
             f32({2, v.length, v.kv_heads, v.value_width}), fixed_i32(v.start)},
            {{"scale", 0.4}, {"window", v.window}});
    c.tolerance = 5e-6;
    c.differentiable = v.length < 30;
    all.push_back(c);
  }
  for (i64 window : {0, 3}) {
    AttrList attrs = {{"window", window}};
    std::string suffix = window ? "_window" : "";
    std::vector<OpInput> in = {f32({2, 3, 2, 9}), fixed_i32({0, 6})};
    all.push_back(
        constant_row("causal_mask/start" + suffix, Op::CausalMask, in, attrs));
    all.push_back({"causal_mask/exp_start" + suffix, Op::CausalMask, in,
                   [attrs](Builder& b, In in) {
                     return Values{
                         b.exp(b.op(Op::CausalMask, {in[0], in[1]}, attrs))};
                   }});
  }
  all.push_back(
      constant_row("dynamic_update_slice/rows", Op::DynamicUpdateSlice,
                   {f32({3, 8, 5}), f32({3, 2, 5}), fixed_i32({0, 5, 99})},
                   {{"axis", i64(1)}}));
  all.push_back(
      constant_row("dynamic_update_slice/inner_rows", Op::DynamicUpdateSlice,
                   {f32({2, 3, 8, 4}), f32({2, 3, 1, 4}), fixed_i32({-4, 6})},
                   {{"axis", i64(2)}}));
}

void add_few_row_cases(std::vector<OpCase>& all) {
  AttrList nk = {{"transpose_b", true}, {"scale", 0.5}};
  struct Shape {
    i64 rows, n, k;
  };
  for (auto [rows, n, k] :
       {Shape{1, 40, 64}, Shape{1, 7, 37}, Shape{2, 300, 80}, Shape{3, 33, 100},
        Shape{5, 21, 33}, Shape{8, 50, 17}}) {
    std::string suffix =
        "/few_" + std::to_string(rows) + "_" + std::to_string(n);
    OpCase c =
        row("matmul" + suffix, Op::Matmul, {f32({rows, k}), f32({n, k})}, nk);
    c.tolerance = 5e-6;
    all.push_back(c);
    OpCase half =
        constant_row("matmul/stored_bf16" + suffix, Op::Matmul,
                     {statistics({rows, k}), stored_bf16({n, k})}, nk);
    half.tolerance = 5e-6;
    all.push_back(half);
  }
  all.push_back(row("matmul/few_of_batches", Op::Matmul,
                    {f32({2, 2, 40}), f32({1, 24, 40})}, nk));
  // more rows than the kernels for few take
  all.push_back(constant_row("matmul/stored_bf16_many", Op::Matmul,
                             {statistics({19, 24}), stored_bf16({40, 24})},
                             nk));
}

// Tokens of which two choose the same experts, one choice dropped.
void add_few_expert_cases(std::vector<OpCase>& all) {
  OpInput offsets = fixed_i32({0, 2, 2, 4, 5});
  OpInput perm = fixed_i32({0, 2, 1, 4, 3, -1});
  OpInput inverse = fixed_i32({0, 2, 1, 4, 3, -1});
  struct Size {
    i64 dim, hidden;
  };
  for (const char* activation : {"gelu", "swiglu"})
    for (auto [dim, hidden] : {Size{40, 70}, Size{9, 13}})
      for (bool half : {false, true}) {
        bool gated = activation[0] == 's';
        auto weight = [&](Dims d) { return half ? stored_bf16(d) : f32(d); };
        std::vector<OpInput> in = {statistics({3, dim}),
                                   statistics({3, 2}, 0.1, 1),
                                   offsets,
                                   perm,
                                   inverse,
                                   weight({4, hidden, dim}),
                                   weight({4, dim, hidden})};
        if (gated) in.push_back(weight({4, hidden, dim}));
        in.insert(in.end(), {statistics({4, hidden}), statistics({4, dim})});
        if (gated) in.push_back(statistics({4, hidden}));
        AttrList attrs = {{"activation", std::string(activation)}};
        OpCase c{std::string("moe_ffn/few_") + activation + "_" +
                     std::to_string(dim) + (half ? "_bf16" : ""),
                 Op::MoeFfn, in, [attrs](Builder& b, In in) {
                   return Values{b.node(Op::MoeFfn, in, attrs)->result()};
                 }};
        c.tolerance = 1e-5;
        c.differentiable = false;
        all.push_back(c);
      }
}

}  // namespace

void add_generation_cases(std::vector<OpCase>& all) {
  add_cache_cases(all);
  add_few_row_cases(all);
  add_few_expert_cases(all);
}

}  // namespace moec
