// The pass grad against central finite differences in f64.
#include <cmath>

#include "ir/builder.h"
#include "ir/text.h"
#include "support/error.h"
#include "tests/passes/testing.h"
#include "tests/test.h"

namespace moec {
namespace {

// The graph returns the loss and then the gradients of its first arguments.
void check_gradients(std::string_view text, i64 limit = 4) {
  auto g = parse_graph(text);
  PassContext ctx;
  run_passes(*g, {"grad"}, ctx);
  CHECK(count_ops(*g, Op::Grad) == 0);
  auto inputs = random_inputs(*g, 3, limit);
  auto outputs = interpret(*g, inputs, Precision::F64);
  constexpr double kStep = 1e-5;
  for (size_t i = 1; i < outputs.size(); ++i) {
    Tensor& x = inputs[i - 1];
    REQUIRE(outputs[i].type == x.type);
    for (size_t j = 0; j < x.data.size(); ++j) {
      double at = x.data[j];
      x.data[j] = at + kStep;
      double above = interpret(*g, inputs, Precision::F64)[0].data[0];
      x.data[j] = at - kStep;
      double below = interpret(*g, inputs, Precision::F64)[0].data[0];
      x.data[j] = at;
      INFO("gradient of argument ", i - 1, ", element ", j);
      CHECK(outputs[i].data[j] ==
            doctest::Approx((above - below) / (2 * kStep)).epsilon(1e-6));
    }
  }
}

TEST_CASE("gradients of a small expert layer") {
  check_gradients(R"(
func @f(%x: f32[5,4], %w1: f32[3,6,4], %b1: f32[3,6], %w2: f32[3,4,6], %wr: f32[4,3]) {
  %l  = matmul(%x, %wr)                       : f32[5,3]
  %p  = softmax(%l)                           : f32[5,3]
  %v, %i = top_k(%p) {k=2}                    : f32[5,2], i32[5,2]
  %g  = put_along(%i, %v) {size=3}            : f32[5,3]
  %gt = transpose(%g) {perm=[1,0]}            : f32[3,5]
  %ge = reshape(%gt) {shape=[3,5,1]}          : f32[3,5,1]
  %xe = reshape(%x) {shape=[1,5,4]}           : f32[1,5,4]
  %u  = matmul(%xe, %w1) {transpose_b}        : f32[3,5,6]
  %b  = reshape(%b1) {shape=[3,1,6]}          : f32[3,1,6]
  %h  = add(%u, %b)                           : f32[3,5,6]
  %a  = silu(%h)                              : f32[3,5,6]
  %y  = matmul(%a, %w2) {transpose_b}         : f32[3,5,4]
  %yw = mul(%y, %ge)                          : f32[3,5,4]
  %o  = sum(%yw) {axes=[0]}                   : f32[5,4]
  %q  = mul(%o, %o)                           : f32[5,4]
  %loss = sum(%q) {axes=[0,1]}                : f32[]
  %d0, %d1, %d2, %d3, %d4 = grad(%loss, %x, %w1, %b1, %w2, %wr) : f32[5,4], f32[3,6,4], f32[3,6], f32[3,4,6], f32[4,3]
  return %loss, %d0, %d1, %d2, %d3, %d4
}
)");
}

TEST_CASE("gradients through fused attention, norms and the fused loss") {
  check_gradients(R"(
func @f(%x: f32[1,2,3,4], %gamma: f32[4], %w: f32[7,4], %t: i32[6]) {
  %n = rms_norm(%x, %gamma) {eps=1e-06}                    : f32[1,2,3,4]
  %r = rope(%n)                                            : f32[1,2,3,4]
  %o, %lse = attention(%r, %n, %x) {causal, scale=0.5}     : f32[1,2,3,4], f32[1,2,3]
  %f = reshape(%o) {shape=[6,4]}                           : f32[6,4]
  %l, %z = linear_cross_entropy(%f, %w, %t)                : f32[6], f32[6]
  %loss = mean(%l) {axes=[0]}                              : f32[]
  %d0, %d1, %d2 = grad(%loss, %x, %gamma, %w) : f32[1,2,3,4], f32[4], f32[7,4]
  return %loss, %d0, %d1, %d2
}
)");
}

TEST_CASE("a value used twice sums its gradients; unused ones are zero") {
  auto g = parse_graph(R"(
func @f(%x: f32[3], %y: f32[2], %i: f32[3]) {
  %a = mul(%x, %x)            : f32[3]
  %s = stop_gradient(%i)      : f32[3]
  %b = mul(%a, %s)            : f32[3]
  %c = add(%b, %x)            : f32[3]
  %loss = sum(%c) {axes=[0]}  : f32[]
  %dx, %dy, %di = grad(%loss, %x, %y, %i) : f32[3], f32[2], f32[3]
  return %loss, %dx, %dy, %di
}
)");
  PassContext ctx;
  run_passes(*g, {"grad"}, ctx);
  CHECK(count_ops(*g, Op::StopGradient) == 0);
  auto inputs = random_inputs(*g, 1);
  auto out = interpret(*g, inputs, Precision::F64);
  for (int j = 0; j < 3; ++j) {
    double x = inputs[0].data[j], i = inputs[2].data[j];
    CHECK(out[1].data[j] == doctest::Approx(2 * x * i + 1));
    CHECK(out[3].data[j] == 0);
  }
  for (double d : out[2].data) CHECK(d == 0);
}

TEST_CASE("gradients of gradients, and of values inside the graph") {
  auto g = parse_graph(R"(
func @f(%x: f32[3]) {
  %a = mul(%x, %x)              : f32[3]
  %b = mul(%a, %x)              : f32[3]
  %s = sum(%b) {axes=[0]}       : f32[]
  %d1, %da = grad(%s, %x, %a)   : f32[3], f32[3]
  %t = sum(%d1) {axes=[0]}      : f32[]
  %d2 = grad(%t, %x)            : f32[3]
  return %d1, %da, %d2
}
)");
  PassContext ctx;
  run_passes(*g, {"grad"}, ctx);
  auto inputs = random_inputs(*g, 5);
  auto out = interpret(*g, inputs, Precision::F64);
  for (int j = 0; j < 3; ++j) {
    double x = inputs[0].data[j];
    CHECK(out[0].data[j] == doctest::Approx(3 * x * x));
    CHECK(out[1].data[j] == doctest::Approx(x));
    CHECK(out[2].data[j] == doctest::Approx(6 * x));
  }
}

TEST_CASE("new nodes keep the scope of the forward node") {
  auto g = parse_graph(R"(
func @f(%x: f32[3]) {
  // layer0/ffn
  %a = silu(%x)                : f32[3]
  // loss
  %s = sum(%a) {axes=[0]}      : f32[]
  %d = grad(%s, %x)            : f32[3]
  return %d
}
)");
  PassContext ctx;
  run_passes(*g, {"grad"}, ctx);
  CHECK(g->outputs()[0].node->where.scope == "layer0/ffn");
}

TEST_CASE("the cost of grad is linear in the graph") {
  auto nodes_of = [](int layers) {
    Graph g("chain");
    Value x = g.add_arg("x", Type{DType::F32, {4}});
    Value w = g.add_arg("w", Type{DType::F32, {4}});
    Builder b(g);
    Value y = x;
    for (int i = 0; i < layers; ++i) y = b.mul(b.op(Op::Silu, {y}), w);
    Value loss = b.sum(y, {0});
    Node* d = b.node(Op::Grad, Values{loss, x, w});
    g.set_outputs({d->result(0), d->result(1)});
    PassContext ctx;
    run_passes(g, {"grad", "dce"}, ctx);
    return g.size();
  };
  int one = nodes_of(40) - nodes_of(20), two = nodes_of(80) - nodes_of(60);
  CHECK(one == two);
}

}  // namespace
}  // namespace moec
