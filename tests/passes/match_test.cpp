#include "ir/match.h"

#include "ir/text.h"
#include "tests/test.h"

namespace moec {
namespace {

constexpr const char* kScores = R"(
func @scores(%q: f32[4,8], %k: f32[4,8], %c: f32[4,4]) {
  %s = matmul(%q, %k) {transpose_b} : f32[4,4]
  %p = softmax(%s)                  : f32[4,4]
  %r = add(%c, %p)                  : f32[4,4]
  %t = add(%r, %s)                  : f32[4,4]
  return %t
}
)";

Value last(Graph& g) { return g.outputs()[0]; }

TEST_CASE("a pattern captures what it matches, in either order") {
  auto g = parse_graph(kScores);
  Value r = last(*g).node->operand(0);
  Value q, k, c;
  Node* scores = nullptr;
  auto pattern =
      m::op(Op::Add,
            {m::op(Op::Softmax, {m::op(Op::Matmul, {m::any(&q), m::any(&k)})
                                     .attr("transpose_b", true)
                                     .node(&scores)}),
             m::any(&c)})
          .commutative();
  REQUIRE(m::match(r, pattern));
  CHECK(q == g->args()[0]->result());
  CHECK(k == g->args()[1]->result());
  CHECK(c == g->args()[2]->result());
  CHECK(scores->op() == Op::Matmul);
}

TEST_CASE("a pattern that does not match says why and captures nothing") {
  auto g = parse_graph(kScores);
  Value p = last(*g).node->operand(0).node->operand(1);
  Value q;
  std::string why;
  auto matmul = m::op(Op::Matmul, {m::any(&q), m::any()});

  CHECK_FALSE(m::match(p, m::op(Op::Softmax, {matmul.one_use()}), &why));
  CHECK(why.find("has 2 users, not 1") != why.npos);
  CHECK_FALSE(bool(q));

  CHECK_FALSE(m::match(
      p, m::op(Op::Softmax, {matmul.attr("transpose_b", false)}), &why));
  CHECK(why.find("does not have transpose_b=false") != why.npos);

  CHECK_FALSE(m::match(p, m::op(Op::Softmax, {m::op(Op::CausalMask)}), &why));
  CHECK(why.find("is not causal_mask") != why.npos);
}

TEST_CASE("alternatives, equal values and constants") {
  auto g = parse_graph(R"(
func @f(%x: f32[4]) {
  %c = constant() {shape=[], value=2} : f32[]
  %b = broadcast(%c) {shape=[4]}      : f32[4]
  %y = mul(%x, %x)                    : f32[4]
  %z = mul(%y, %b)                    : f32[4]
  return %z
}
)");
  Value z = last(*g), x;
  double number = 0;
  auto square = m::op(Op::Mul, {m::any(&x), m::same(&x)});
  auto either = m::one_of({m::op(Op::Add, {square, m::any()}),
                           m::op(Op::Mul, {square, m::splat(&number)})});
  REQUIRE(m::match(z, either));
  CHECK(number == 2);
  CHECK(x == g->args()[0]->result());
  std::string why;
  CHECK_FALSE(m::match(z, m::op(Op::Mul, {m::any(&x), m::same(&x)}), &why));
  CHECK(why.find("is not the same value") != why.npos);
}

}  // namespace
}  // namespace moec
