// The graph: uses, rewriting in place, cloning, inlining, provenance.
#include "ir/graph.h"

#include "ir/builder.h"
#include "ir/op_def.h"
#include "ir/text.h"
#include "ir/verifier.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec {
namespace {

TEST_CASE("replacing a value moves its uses, also in the return") {
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4}});
  Builder b(g);
  Value y = b.exp(x);
  Value z = b.mul(y, y);
  g.set_outputs({z, y});
  CHECK(y.node->num_uses(0) == 3);
  Builder early(g, y.node);
  Value n = early.neg(x);
  g.replace_all_uses(y, n);
  CHECK(y.node->users().empty());
  CHECK(n.node->num_uses(0) == 3);
  g.erase(y.node);
  verify(g);
  CHECK(g.size() == 4);
  CHECK(g.outputs()[1] == n);
}

TEST_CASE("erasing a node in use is an internal error") {
  Graph g("f");
  Value y = Builder(g).exp(g.add_arg("x", {DType::F32, {4}}));
  g.set_outputs({y});
  CHECK_THROWS_AS(g.erase(y.node), InternalError);
}

TEST_CASE("nodes go where the builder stands, with its provenance") {
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4}});
  Builder b(g);
  b.where.scope = "layer1/mlp";
  Value y = b.exp(x);
  g.set_outputs({y});
  Value late = Builder(g).neg(y);
  CHECK(late.node->next() == g.return_node());
  Builder before(g, y.node);
  Value early = before.neg(x);
  CHECK(early.node->next() == y.node);
  CHECK(early.node->where.scope == "layer1/mlp");
  // An argument made late stands after the other arguments.
  g.add_arg("w", {DType::F32, {1}});
  CHECK(g.first()->next()->op() == Op::Arg);
  verify(g);
}

TEST_CASE("a user error names op, shapes and place") {
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4}});
  Value y = g.add_arg("y", {DType::F32, {3}});
  Builder b(g);
  b.where = {"layer0/moe", "model.h", 31};
  try {
    b.add(x, y);
    FAIL("no error");
  } catch (const UserError& e) {
    std::string s = e.what();
    CHECK(s.find("f32[4]") != std::string::npos);
    CHECK(s.find("f32[3]") != std::string::npos);
    CHECK(s.find("layer0/moe") != std::string::npos);
    CHECK(s.find("model.h:31") != std::string::npos);
  }
  CHECK(g.size() == 2);  // nothing is left behind
}

TEST_CASE("a clone is equal and separate") {
  auto g = parse_graph(R"(func @f(%x: f32[4], %y: f32[4]) {
  %0 = add(%x, %y) : f32[4]
  %1 = fusion(%a = %0) : f32[4] {
    %b = exp(%a) : f32[4]
    return %b
  }
  return y = %1, z = %0
})");
  auto c = g->clone();
  verify(*c);
  CHECK(print(*c) == print(*g));
  c->outputs()[1].node->set_operand(0, c->outputs()[1].node->operand(1));
  CHECK(print(*c) != print(*g));
}

TEST_CASE("inlining a fusion's body gives its meaning") {
  auto g = parse_graph(R"(func @f(%x: f32[4]) {
  %1 = fusion(%a = %x) : f32[4] {
    %b = exp(%a) : f32[4]
    %c = add(%b, %a) : f32[4]
    return %c
  }
  return %1
})");
  Node* fusion = g->outputs()[0].node;
  Builder b(*g, fusion);
  Values v = inline_graph(b, *fusion->body(), fusion->operands());
  g->replace_all_uses(fusion->result(), v[0]);
  g->erase(fusion);
  verify(*g);
  auto plain = parse_graph(R"(func @f(%x: f32[4]) {
  %0 = exp(%x) : f32[4]
  %1 = add(%0, %x) : f32[4]
  return %1
})");
  CHECK(structural_key(*g) == structural_key(*plain));
}

TEST_CASE("sum_to undoes broadcasting") {
  Graph g("f");
  Builder b(g);
  Value x = g.add_arg("x", {DType::F32, {5, 2, 3}});
  CHECK(b.sum_to(x, {3}).type() == Type{DType::F32, {3}});
  CHECK(b.sum_to(x, {2, 1}).type() == Type{DType::F32, {2, 1}});
  CHECK(b.sum_to(x, {}).type() == Type{DType::F32, {}});
  CHECK(b.sum_to(x, {5, 2, 3}) == x);
}

TEST_CASE("float attributes keep what their text says") {
  CHECK(canonical_float(0.1) == 0.1);
  CHECK(canonical_float(0.17677669529663687) == 0.17677669);
  CHECK(canonical_float(16777217) == 16777217);
  CHECK(to_string(AttrValue(1e-6)) == "1e-06");
}

}  // namespace
}  // namespace moec
