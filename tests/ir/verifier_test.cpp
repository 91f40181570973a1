// The verifier names what is broken and after which pass.
#include "ir/verifier.h"

#include "ir/builder.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec {
namespace {

std::string failure(const Graph& g) {
  try {
    verify(g, "my-pass");
  } catch (const InternalError& e) {
    return e.what();
  }
  return "";
}

TEST_CASE("a user before its operand is found") {
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4}});
  Builder b(g);
  Value y = b.exp(x), z = b.neg(y);
  g.set_outputs({z});
  CHECK(failure(g).empty());
  g.move_before(z.node, y.node);
  CHECK(failure(g).find("after my-pass: @f") != std::string::npos);
  CHECK(failure(g).find("stands after its user") != std::string::npos);
}

TEST_CASE("a type that no longer follows is found") {
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4}});
  Value w = g.add_arg("w", {DType::F32, {2}});
  Value y = Builder(g).exp(x);
  g.set_outputs({y});
  y.node->set_operand(0, w);
  CHECK(failure(g).find("type should be f32[2]") != std::string::npos);
}

TEST_CASE("arguments of one name are found") {
  Graph g("f");
  g.add_arg("x", {DType::F32, {4}});
  g.add_arg("x", {DType::F32, {4}});
  CHECK(failure(g).find("two arguments have the name x") != std::string::npos);
}

TEST_CASE("a node after the return is found") {
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4}});
  g.set_outputs({x});
  Value y = Builder(g).exp(x);
  g.move_before(y.node, nullptr);
  CHECK(failure(g).find("after the return") != std::string::npos);
}

}  // namespace
}  // namespace moec
