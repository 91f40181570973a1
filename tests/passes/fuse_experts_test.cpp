// fuse-experts computes what the dense meaning says, forward and backward.
#include <fmt/format.h>

#include "ir/text.h"
#include "tests/passes/testing.h"
#include "tests/test.h"

namespace moec {
namespace {

struct Ffn {
  std::string activation, body;
  bool gated;
};

std::string layer(const Ffn& f, int k, bool bias) {
  auto projection = [&](char name) {
    std::string s = fmt::format(
        "  %{0}{1} = matmul(%xs, %w{0}) {{transpose_b}} : f32[4,6,7]\n", name,
        bias ? "0" : "");
    if (bias)
      s += fmt::format(
          "  %{0}b = reshape(%b{0}) {{shape=[4,1,7]}} : f32[4,1,7]\n"
          "  %{0} = add(%{0}0, %{0}b) : f32[4,6,7]\n",
          name);
    return s;
  };
  std::string body = projection('u');
  if (f.gated) body += projection('g');
  body += f.body;
  body += bias ? R"(
  %y0 = matmul(%a, %wd) {transpose_b}       : f32[4,6,5]
  %bdr = reshape(%bd) {shape=[4,1,5]}       : f32[4,1,5]
  %y  = add(%y0, %bdr)                      : f32[4,6,5]
)"
               : "  %y = matmul(%a, %wd) {transpose_b} : f32[4,6,5]\n";
  return fmt::format(R"(
func @f(%x: f32[6,5], %wu: f32[4,7,5], %wg: f32[4,7,5], %wd: f32[4,5,7], %bu: f32[4,7], %bg: f32[4,7], %bd: f32[4,5], %wr: f32[5,4]) {{
  %l = matmul(%x, %wr)                      : f32[6,4]
  %p = softmax(%l)                          : f32[6,4]
  %v, %idx = top_k(%p) {{k={0}}}            : f32[6,{0}], i32[6,{0}]
  %keep = capacity_keep(%idx) {{experts=4, capacity=3}} : bool[6,{0}]
  %kf = cast(%keep) {{dtype=f32}}           : f32[6,{0}]
  %w = mul(%v, %kf)                         : f32[6,{0}]
  %gate = put_along(%idx, %w) {{size=4}}    : f32[6,4]
  %xs = reshape(%x) {{shape=[1,6,5]}}       : f32[1,6,5]
{1}
  %gt = transpose(%gate) {{perm=[1,0]}}     : f32[4,6]
  %ge = reshape(%gt) {{shape=[4,6,1]}}      : f32[4,6,1]
  %yw = mul(%y, %ge)                        : f32[4,6,5]
  %o  = sum(%yw) {{axes=[0]}}               : f32[6,5]
  %oo = mul(%o, %o)                         : f32[6,5]
  %loss = sum(%oo) {{axes=[0,1]}}           : f32[]
  %d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7 = grad(%loss, %x, %wu, %wg, %wd, %bu, %bg, %bd, %wr) : f32[6,5], f32[4,7,5], f32[4,7,5], f32[4,5,7], f32[4,7], f32[4,7], f32[4,5], f32[5,4]
  return %loss, %d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7
}}
)",
                     k, body);
}

TEST_CASE("fused experts agree with the dense meaning, gradients included") {
  const Ffn kinds[] = {
      {"gelu", "  %a = gelu(%u) : f32[4,6,7]\n", false},
      {"relu", "  %a = relu(%u) : f32[4,6,7]\n", false},
      {"silu", "  %a = silu(%u) : f32[4,6,7]\n", false},
      {"swiglu",
       "  %s = silu(%g) : f32[4,6,7]\n  %a = mul(%s, %u) : f32[4,6,7]\n", true},
      {"geglu",
       "  %s = gelu(%g) : f32[4,6,7]\n  %a = mul(%u, %s) : f32[4,6,7]\n", true},
      {"relu2_glu",
       "  %r = relu(%g) : f32[4,6,7]\n  %s = mul(%r, %r) : f32[4,6,7]\n"
       "  %a = mul(%s, %u) : f32[4,6,7]\n",
       true},
      {"gelu_bilinear",
       "  %m = mul(%g, %u) : f32[4,6,7]\n  %a = gelu(%m) : f32[4,6,7]\n",
       true}};
  for (const Ffn& f : kinds)
    for (int k : {1, 2})
      for (bool bias : {false, true}) {
        CAPTURE(f.activation);
        CAPTURE(k);
        CAPTURE(bias);
        std::string text = layer(f, k, bias);
        auto dense = parse_graph(text), fused = parse_graph(text);
        PassContext ctx;
        run_passes(*dense, {"grad"}, ctx);
        run_passes(*fused,
                   {"canonicalize", "cse", "dce", "fuse-moe", "fuse-experts",
                    "canonicalize", "grad", "dce"},
                   ctx);
        CHECK(count_ops(*fused, Op::MoeFfn) == 1);
        CHECK(count_ops(*fused, Op::MoeFfnGrad) == 1);
        CHECK(count_ops(*fused, Op::GroupedMatmul) == 0);
        auto inputs = random_inputs(*dense, 11);
        CHECK(max_difference(interpret(*dense, inputs, Precision::F64),
                             interpret(*fused, inputs, Precision::F64)) <
              1e-11);
      }
}

}  // namespace
}  // namespace moec
