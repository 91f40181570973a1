// The whole pipeline on a small transformer block and its training step:
// every combination of fusions computes the same.
#include "ir/builder.h"
#include "ir/op_def.h"
#include "ir/text.h"
#include "ir/verifier.h"
#include "tests/passes/testing.h"
#include "tests/test.h"

namespace moec {
namespace {

// One block with shared keys, rope and a gated expert layer, and its loss.
constexpr const char* kBlock = R"(
func @train(%x: f32[2,4,8], %g1: f32[8], %wq: f32[8,8], %wk: f32[4,8], %wv: f32[4,8], %wo: f32[8,8], %g2: f32[8], %wr: f32[3,8], %w1: f32[3,6,8], %w3: f32[3,6,8], %b1: f32[3,6], %w2: f32[3,8,6], %head: f32[7,8], %targets: i32[8], %key: u32[2]) {
  // layer0/attn
  %n1 = rms_norm(%x, %g1) {eps=1e-06}                 : f32[2,4,8]
  %q0 = matmul(%n1, %wq) {transpose_b}                : f32[2,4,8]
  %q1 = reshape(%q0) {shape=[2,4,2,4]}                : f32[2,4,2,4]
  %q2 = transpose(%q1) {perm=[0,2,1,3]}               : f32[2,2,4,4]
  %q3 = rope(%q2)                                     : f32[2,2,4,4]
  %q  = reshape(%q3) {shape=[2,1,2,4,4]}              : f32[2,1,2,4,4]
  %k0 = matmul(%n1, %wk) {transpose_b}                : f32[2,4,4]
  %k1 = reshape(%k0) {shape=[2,4,1,4]}                : f32[2,4,1,4]
  %k2 = transpose(%k1) {perm=[0,2,1,3]}               : f32[2,1,4,4]
  %k3 = rope(%k2)                                     : f32[2,1,4,4]
  %k  = reshape(%k3) {shape=[2,1,1,4,4]}              : f32[2,1,1,4,4]
  %v0 = matmul(%n1, %wv) {transpose_b}                : f32[2,4,4]
  %v1 = reshape(%v0) {shape=[2,4,1,4]}                : f32[2,4,1,4]
  %v2 = transpose(%v1) {perm=[0,2,1,3]}               : f32[2,1,4,4]
  %v  = reshape(%v2) {shape=[2,1,1,4,4]}              : f32[2,1,1,4,4]
  %s  = matmul(%q, %k) {transpose_b, scale=0.5}       : f32[2,1,2,4,4]
  %sm = causal_mask(%s)                               : f32[2,1,2,4,4]
  %p  = softmax(%sm)                                  : f32[2,1,2,4,4]
  %pd = dropout(%p, %key) {p=0.25, stream=1}          : f32[2,1,2,4,4]
  %o  = matmul(%pd, %v)                               : f32[2,1,2,4,4]
  %o1 = reshape(%o) {shape=[2,2,4,4]}                 : f32[2,2,4,4]
  %o2 = transpose(%o1) {perm=[0,2,1,3]}               : f32[2,4,2,4]
  %om = reshape(%o2) {shape=[2,4,8]}                  : f32[2,4,8]
  %oo = matmul(%om, %wo) {transpose_b}                : f32[2,4,8]
  %x1 = add(%x, %oo)                                  : f32[2,4,8]
  // layer0/moe
  %n2 = rms_norm(%x1, %g2) {eps=1e-06}                : f32[2,4,8]
  %t  = reshape(%n2) {shape=[8,8]}                    : f32[8,8]
  %l  = matmul(%t, %wr) {transpose_b}                 : f32[8,3]
  %pr = softmax(%l)                                   : f32[8,3]
  %tv, %idx = top_k(%pr) {k=2}                        : f32[8,2], i32[8,2]
  %ts = sum(%tv) {axes=[-1], keepdims}                : f32[8,1]
  %w  = div(%tv, %ts)                                 : f32[8,2]
  %gate = put_along(%idx, %w) {size=3}                : f32[8,3]
  %xs = reshape(%t) {shape=[1,8,8]}                   : f32[1,8,8]
  %g0 = matmul(%xs, %w1) {transpose_b}                : f32[3,8,6]
  %br = reshape(%b1) {shape=[3,1,6]}                  : f32[3,1,6]
  %gb = add(%g0, %br)                                 : f32[3,8,6]
  %u  = matmul(%xs, %w3) {transpose_b}                : f32[3,8,6]
  %ga = silu(%gb)                                     : f32[3,8,6]
  %h  = mul(%ga, %u)                                  : f32[3,8,6]
  %y  = matmul(%h, %w2) {transpose_b}                 : f32[3,8,8]
  %gt = transpose(%gate) {perm=[1,0]}                 : f32[3,8]
  %ge = reshape(%gt) {shape=[3,8,1]}                  : f32[3,8,1]
  %yw = mul(%y, %ge)                                  : f32[3,8,8]
  %ys = sum(%yw) {axes=[0]}                           : f32[8,8]
  %yd = dropout(%ys, %key) {p=0.25, stream=2}         : f32[8,8]
  %yr = reshape(%yd) {shape=[2,4,8]}                  : f32[2,4,8]
  %x2 = add(%x1, %yr)                                 : f32[2,4,8]
  // loss
  %f  = reshape(%x2) {shape=[8,8]}                    : f32[8,8]
  %lg = matmul(%f, %head) {transpose_b}               : f32[8,7]
  %ce, %lse = cross_entropy(%lg, %targets)            : f32[8], f32[8]
  %mean = mean(%ce) {axes=[0]}                        : f32[]
  %c  = bincount(%idx) {size=3}                       : i32[3]
  %cf = cast(%c) {dtype=f32}                          : f32[3]
  %pm = mean(%pr) {axes=[0]}                          : f32[3]
  %fp = mul(%cf, %pm)                                 : f32[3]
  %aux = sum(%fp) {axes=[0]}                          : f32[]
  %ac = constant() {value=0.01}                       : f32[]
  %sa = mul(%aux, %ac)                                : f32[]
  %loss = add(%mean, %sa)                             : f32[]
  %dx, %dg1, %dwq, %dwk, %dwv, %dwo, %dg2, %dwr, %dw1, %dw3, %db1, %dw2, %dh = grad(%loss, %x, %g1, %wq, %wk, %wv, %wo, %g2, %wr, %w1, %w3, %b1, %w2, %head) : f32[2,4,8], f32[8], f32[8,8], f32[4,8], f32[4,8], f32[8,8], f32[8], f32[3,8], f32[3,6,8], f32[3,6,8], f32[3,6], f32[3,8,6], f32[7,8]
  return %loss, %dx, %dg1, %dwq, %dwk, %dwv, %dwo, %dg2, %dwr, %dw1, %dw3, %db1, %dw2, %dh
}
)";

std::unique_ptr<Graph> compiled(const PipelineOptions& options) {
  auto g = parse_graph(kBlock);
  PassContext ctx;
  ctx.options = options;
  run_pipeline(*g, ctx);
  return g;
}

TEST_CASE("every set of fusions trains the same") {
  auto source = parse_graph(kBlock);
  auto inputs = random_inputs(*source, 4, 3);
  PassContext ctx;
  run_passes(*source, {"grad"}, ctx);
  auto want = interpret(*source, inputs, Precision::F64);
  for (auto fuse : {"off", "on", "attention", "cross_entropy", "elementwise",
                    "elementwise,reduction"})
    for (MoeForm moe : {MoeForm::Dense, MoeForm::Grouped, MoeForm::Fused}) {
      INFO("fuse=", fuse, " moe=", moe_form_name(moe));
      PipelineOptions options;
      options.fuse = FusionSet::parse(fuse);
      options.moe = moe;
      auto g = compiled(options);
      CHECK(max_difference(want, interpret(*g, inputs, Precision::F64)) <
            1e-10);
      CHECK(print(*parse_graph(print(*g))) == print(*g));
    }
}

TEST_CASE("the fused step has no scores, logits or dense experts left") {
  auto g = compiled({});
  INFO(print(*g));
  CHECK(count_ops(*g, Op::Attention) == 1);
  CHECK(count_ops(*g, Op::AttentionGrad) == 1);
  CHECK(count_ops(*g, Op::LinearCrossEntropy) == 0);
  CHECK(count_ops(*g, Op::LinearCrossEntropyBoth) == 1);
  CHECK(count_ops(*g, Op::Route) == 1);
  CHECK(count_ops(*g, Op::MoeFfn) == 0);  // it has a bias on the gate only
  CHECK(count_ops(*g, Op::GroupedMatmul) == 6);
  CHECK(count_ops(*g, Op::GroupedMatmulDw) == 3);
  CHECK(count_ops(*g, Op::Transpose) == 0);
  CHECK(count_ops(*g, Op::PutAlong) <= 1);
}

TEST_CASE("what the backend does not run is decomposed") {
  PipelineOptions options;
  options.has_lowering = [](const Node& n) {
    return !has_trait(n, kFused) || n.body();
  };
  auto g = compiled(options);
  CHECK(count_ops(*g, Op::Attention) == 0);
  CHECK(count_ops(*g, Op::AttentionGrad) == 0);
  CHECK(count_ops(*g, Op::LinearCrossEntropyGrad) == 0);
}

TEST_CASE("the pipeline gives the same graph every time") {
  CHECK(print(*compiled({})) == print(*compiled({})));
}

}  // namespace
}  // namespace moec
