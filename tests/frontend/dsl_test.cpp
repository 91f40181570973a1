// The DSL: what it records, names, places, parameters and errors.
#include "frontend/nn.h"

#include <cmath>

#include "frontend/optim.h"
#include "ir/text.h"
#include "ir/verifier.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec::dsl {
namespace {

TEST_CASE("operators, numbers and scopes are recorded as written") {
  auto g = trace("f", [] {
    Tensor x = input("x", DType::F32, {2, 3});
    Tensor y;
    {
      Scope scope("layer0");
      Scope inner("mlp");
      y = (2.0 * x + 1).named("y");
    }
    return Outputs{{"y", y}};
  });
  verify(*g);
  auto text = print(*g);
  CAPTURE(text);
  CHECK(text.find("// layer0/mlp") != text.npos);
  CHECK(text.find("%y = add(") != text.npos);
  CHECK(text.find("return y = %y") != text.npos);
  CHECK(print(*parse_graph(text)) == text);
}

TEST_CASE("nodes know the line of the model's source") {
  int line = 0;
  auto g = trace("f", [&] {
    Tensor x = input("x", DType::F32, {4});
    line = __LINE__ + 1;
    Tensor y = x * x;
    return Outputs{{"y", y}};
  });
  Node* n = g->outputs()[0].node;
  CHECK(n->where.line == line);
  CHECK(std::string(n->where.file).ends_with("dsl_test.cpp"));
}

TEST_CASE("parameters are arguments under their names, in order") {
  Parameters params;
  At at(params);
  Linear first(at / "layers" / 0 / "up", 3, 5, true);
  Embedding table(at / "embed", 7, 3);
  CHECK(params.count() == 15 + 5 + 21);
  CHECK(params.find("layers.0.up.bias") == 1);
  CHECK(params.find("nothing") == -1);
  auto g = trace("f", params, [&] {
    Tensor ids = input("ids", DType::I32, {2});
    return Outputs{{"y", first(table(ids))}};
  });
  CHECK(g->arg_name(0) == "layers.0.up.weight");
  CHECK(g->arg_name(2) == "embed.weight");
  CHECK(g->arg_name(3) == "ids");
  CHECK_THROWS_AS(at.parameter("embed.weight", {1}, zeros()), InternalError);
}

TEST_CASE("initial values depend on seed and name, not on the others") {
  Parameters one, two;
  one.add("a", {1000}, normal(2));
  two.add("z", {3}, ones());
  two.add("a", {1000}, normal(2));
  std::vector<float> x(1000), y(1000), z(1000);
  initialize(one[0], 5, x);
  initialize(two[1], 5, y);
  initialize(one[0], 6, z);
  CHECK(x == y);
  CHECK(x != z);
  double sum = 0, square = 0;
  for (float v : x) sum += v, square += double(v) * v;
  CHECK(std::abs(sum / 1000) < 4 * 2 / std::sqrt(1000.0));
  CHECK(square / 1000 == doctest::Approx(4).epsilon(0.2));
  ParameterInfo u{"u", {1000}, uniform(0.5)};
  initialize(u, 1, x);
  for (float v : x) CHECK(std::abs(v) <= 0.5f);
}

TEST_CASE("a step donates parameters and moments") {
  Parameters params;
  Linear layer(At(params) / "l", 3, 2, true);
  auto g = trace("step", params, [&] {
    Tensor x = input("x", DType::F32, {4, 3});
    Tensor lr = input("lr", DType::F32, {});
    Tensor step = input("step", DType::F32, {});
    auto [loss, grads] = value_and_grad([&] { return mean(square(layer(x))); });
    auto update = adamw(params, grads, lr, step, {.clip = 1});
    auto out = update.outputs;
    out.push_back({"loss", loss});
    return out;
  });
  verify(*g);
  std::vector<std::string> names = {"l.weight",
                                    "l.bias",
                                    "adamw.m.l.weight",
                                    "adamw.m.l.bias",
                                    "adamw.v.l.weight",
                                    "adamw.v.l.bias",
                                    "loss"};
  CHECK(g->output_names == names);
}

TEST_CASE("dropout is the identity outside training, else a stream each") {
  auto g = trace("f", [] {
    Tensor x = input("x", DType::F32, {4});
    Tensor key = input("key", DType::U32, {2});
    Dropout drop{0.5};
    Tensor y = drop(x);
    CHECK(y.value() == x.value());
    Training on(key);
    Tensor a = drop(x), b = drop(x);
    CHECK(a.value().node->i("stream") != b.value().node->i("stream"));
    return Outputs{{"y", a + b}};
  });
  verify(*g);
}

TEST_CASE("wrong shapes are errors that name op, shapes, scope and line") {
  std::string text;
  try {
    trace("f", [] {
      Tensor x = input("x", DType::F32, {2, 3});
      Scope scope("attn");
      return Outputs{{"y", matmul(x, x)}};
    });
  } catch (const UserError& e) {
    text = e.what();
  }
  CAPTURE(text);
  for (auto part : {"matmul", "f32[2,3]", "attn", "dsl_test.cpp:"})
    CHECK(text.find(part) != text.npos);
}

TEST_CASE("DSL code outside a trace, and nested traces, are errors") {
  CHECK_THROWS_AS(input("x", DType::F32, {}), UserError);
  CHECK_THROWS_AS(
      trace("a",
            [] { return trace("b", [] { return Outputs(); }), Outputs(); }),
      UserError);
  // A trace that failed leaves nothing behind.
  trace("c", [] { return Outputs{{"x", input("x", DType::F32, {})}}; });
}

}  // namespace
}  // namespace moec::dsl
