// fuse-moe: the routed form computes what the dense meaning says.
#include <fmt/format.h>

#include "ir/text.h"
#include "tests/passes/testing.h"
#include "tests/test.h"

namespace moec {
namespace {

const std::vector<std::string> kFuse{"canonicalize", "cse", "dce", "fuse-moe"};

// A layer of 4 experts on 6 tokens of width 5, whose body computes %y
// f32[4,6,5] from %xs f32[1,6,5].
std::string layer(std::string_view weights, std::string_view body,
                  std::string_view extra_args = "") {
  return fmt::format(R"(
func @f(%x: f32[6,5], %w1: f32[4,7,5], %w2: f32[4,5,7], %b1: f32[4,7], %b2: f32[4,5], %gamma: f32[7], %wr: f32[5,4]{}) {{
  %l = matmul(%x, %wr)                      : f32[6,4]
  %p = softmax(%l)                          : f32[6,4]
{}
  %gate = put_along(%idx, %w) {{size=4}}    : f32[6,4]
  %xs = reshape(%x) {{shape=[1,6,5]}}       : f32[1,6,5]
{}
  %gt = transpose(%gate) {{perm=[1,0]}}     : f32[4,6]
  %ge = reshape(%gt) {{shape=[4,6,1]}}      : f32[4,6,1]
  %yw = mul(%y, %ge)                        : f32[4,6,5]
  %o  = sum(%yw) {{axes=[0]}}               : f32[6,5]
  return %o
}}
)",
                     extra_args, weights, body);
}

constexpr const char* kTopK =
    "  %w, %idx = top_k(%p) {k=2} : f32[6,2], i32[6,2]";
constexpr const char* kFfn = R"(
  %u0 = matmul(%xs, %w1) {transpose_b, scale=0.5} : f32[4,6,7]
  %b1r = reshape(%b1) {shape=[4,1,7]}       : f32[4,1,7]
  %u  = add(%u0, %b1r)                      : f32[4,6,7]
  %n  = rms_norm(%u, %gamma) {eps=1e-06}    : f32[4,6,7]
  %a  = gelu(%n)                            : f32[4,6,7]
  %y0 = matmul(%a, %w2) {transpose_b}       : f32[4,6,5]
  %b2r = reshape(%b2) {shape=[4,1,5]}       : f32[4,1,5]
  %y1 = add(%b2r, %y0)                      : f32[4,6,5]
  %y  = add(%y1, %xs)                       : f32[4,6,5]
)";

void check_routed(const std::string& text) {
  auto g = parse_graph(text);
  PassContext ctx;
  run_passes(*g, kFuse, ctx);
  CHECK(count_ops(*g, Op::Route) == 1);
  CHECK(count_ops(*g, Op::PutAlong) == 0);
  for (Node* n : *g)
    if (n->op() == Op::Matmul) CHECK(n->type().rank() == 2);
  CHECK(change_by(text, kFuse) < 1e-12);
}

TEST_CASE("experts with biases, norms and a residual agree with the dense") {
  check_routed(layer(kTopK, kFfn));
}

TEST_CASE("every gate agrees: k = 1, renormalised, softmax of the chosen") {
  check_routed(
      layer("  %w, %idx = top_k(%p) {k=1} : f32[6,1], i32[6,1]", kFfn));
  check_routed(layer(R"(
  %v, %idx = top_k(%p) {k=3}               : f32[6,3], i32[6,3]
  %vs = sum(%v) {axes=[1], keepdims}       : f32[6,1]
  %w = div(%v, %vs)                        : f32[6,3]
)",
                     kFfn));
  check_routed(layer(R"(
  %v, %idx = top_k(%l) {k=2}               : f32[6,2], i32[6,2]
  %w = softmax(%v)                         : f32[6,2]
)",
                     kFfn));
}

TEST_CASE("choices over the capacity contribute nothing") {
  std::string text = layer(R"(
  %v, %idx = top_k(%p) {k=2}               : f32[6,2], i32[6,2]
  %keep = capacity_keep(%idx) {experts=4, capacity=2} : bool[6,2]
  %kf = cast(%keep) {dtype=f32}            : f32[6,2]
  %w = mul(%v, %kf)                        : f32[6,2]
)",
                           kFfn);
  check_routed(text);
  auto g = parse_graph(text);
  PassContext ctx;
  run_passes(*g, kFuse, ctx);
  for (Node* n : *g)
    if (n->op() == Op::Route) CHECK(n->num_operands() == 2);
}

TEST_CASE("slices and concatenations of the hidden values") {
  check_routed(layer(kTopK, R"(
  %u  = matmul(%xs, %w1) {transpose_b}                : f32[4,6,7]
  %s  = slice(%u) {start=[0,0,1], limit=[4,6,5]}      : f32[4,6,4]
  %t  = slice(%u) {start=[0,0,0], limit=[4,6,3]}      : f32[4,6,3]
  %c  = concat(%s, %t) {axis=2}                       : f32[4,6,7]
  %y  = matmul(%c, %w2) {transpose_b}                 : f32[4,6,5]
)"));
}

TEST_CASE("gradients of the routed form are those of the dense meaning") {
  std::string text = layer(kTopK, kFfn);
  auto at = text.find("  return %o");
  text = text.substr(0, at) + R"(
  %oo = mul(%o, %o)                         : f32[6,5]
  %loss = sum(%oo) {axes=[0,1]}             : f32[]
  %d0, %d1, %d2, %d3, %d4, %d5, %d6 = grad(%loss, %x, %w1, %w2, %b1, %b2, %gamma, %wr) : f32[6,5], f32[4,7,5], f32[4,5,7], f32[4,7], f32[4,5], f32[7], f32[5,4]
  return %loss, %d0, %d1, %d2, %d3, %d4, %d5, %d6
}
)";
  auto dense = parse_graph(text), routed = parse_graph(text);
  PassContext ctx;
  run_passes(*dense, {"grad"}, ctx);
  auto passes = kFuse;
  passes.push_back("grad");
  run_passes(*routed, passes, ctx);
  CHECK(count_ops(*routed, Op::GroupedMatmulDw) == 2);
  auto inputs = random_inputs(*dense, 11);
  CHECK(max_difference(interpret(*dense, inputs, Precision::F64),
                       interpret(*routed, inputs, Precision::F64)) < 1e-11);
}

}  // namespace
}  // namespace moec
