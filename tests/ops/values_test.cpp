// Values known in closed form or from elsewhere, so that the reference itself
// is held to something.
#include <cmath>

#include "ir/op_def.h"
#include "ir/text.h"
#include "support/error.h"
#include "support/rng.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

// Runs `node` (the right side of an assignment to %y with its type).
std::vector<Tensor> run(const std::string& args, const std::string& node,
                        std::vector<std::vector<double>> data,
                        const std::string& results = "%y") {
  auto g = parse_graph("func @f(" + args + ") {\n  " + results + " = " + node +
                       "\n  return " + results + "\n}\n");
  std::vector<Tensor> in;
  for (size_t i = 0; i < data.size(); ++i)
    in.push_back({g->args()[i]->type(), data[i]});
  return interpret(*g, in, Precision::F64);
}

void check_near(const std::vector<double>& got, std::vector<double> want,
                double tolerance = 1e-9) {
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < want.size(); ++i)
    CHECK(got[i] == doctest::Approx(want[i]).epsilon(tolerance));
}

}  // namespace

TEST_CASE("scalar formulas at known points") {
  struct Point {
    const char* op;
    double x, y;
  };
  for (auto [op, x, y] : {Point{"neg", 2, -2},
                          {"abs", -3, 3},
                          {"sign", -0.5, -1},
                          {"exp", 1, 2.718281828459045},
                          {"log", 10, 2.302585092994046},
                          {"sqrt", 2, 1.4142135623730951},
                          {"rsqrt", 4, 0.5},
                          {"tanh", 0.5, 0.46211715726000973},
                          {"erf", 0.5, 0.5204998778130465},
                          {"sigmoid", 1, 0.7310585786300049},
                          {"sigmoid", -800, 0},
                          {"relu", -1, 0},
                          {"relu", 2, 2},
                          {"silu", 1, 0.7310585786300049},
                          {"silu_slope", 1, 0.9276705118714867},
                          {"silu_slope", -800, 0},
                          {"gelu", 1, 0.8411919906082768},
                          {"gelu", -2, -0.04540230591222494},
                          {"gelu_slope", 0, 0.5},
                          {"gelu_slope", -2, -0.08609925662361825},
                          {"softplus", 0, 0.6931471805599453},
                          {"softplus", 900, 900},
                          {"sin", 1, 0.8414709848078965},
                          {"cos", 1, 0.5403023058681398}}) {
    INFO(op, "(", x, ")");
    auto y_got =
        run("%x: f32[1]", std::string(op) + "(%x) : f32[1]", {{x}})[0].data;
    check_near(y_got, {y}, 1e-12);
  }
}

TEST_CASE("integers: division, wrapping and casts") {
  CHECK(run("%a: i32[4], %b: i32[4]", "div(%a, %b) : i32[4]",
            {{7, -7, 7, 5}, {2, 2, -2, 0}})[0]
            .data == std::vector<double>{3, -3, -3, 0});
  CHECK(run("%a: i32[1], %b: i32[1]", "add(%a, %b) : i32[1]",
            {{2147483647}, {1}})[0]
            .data[0] == -2147483648.0);
  CHECK(run("%a: u32[1], %b: u32[1]", "mul(%a, %b) : u32[1]",
            {{4294967295.0}, {4294967295.0}})[0]
            .data[0] == 1);
  CHECK(run("%a: f32[5]", "cast(%a) {dtype=i32} : i32[5]",
            {{1.9, -1.9, 1e20, -1e20, NAN}})[0]
            .data == std::vector<double>{1, -1, 2147483647, -2147483648.0, 0});
}

TEST_CASE("reductions, norms and softmax by hand") {
  std::vector<double> x = {1, 2, 3, 4, 5, 9};
  check_near(run("%x: f32[2,3]", "sum(%x) {axes=[0]} : f32[3]", {x})[0].data,
             {5, 7, 12});
  check_near(run("%x: f32[2,3]", "mean(%x) {axes=[1]} : f32[2]", {x})[0].data,
             {2, 6});
  check_near(run("%x: f32[2,3]", "logsumexp(%x) : f32[2]", {x})[0].data,
             {std::log(std::exp(1) + std::exp(2) + std::exp(3)),
              std::log(std::exp(4) + std::exp(5) + std::exp(9))});
  check_near(run("%x: f32[2,2]", "softmax(%x) : f32[2,2]",
                 {{0, std::log(3), 1000, 1000}})[0]
                 .data,
             {0.25, 0.75, 0.5, 0.5});
  check_near(run("%x: f32[1,2], %g: f32[2]",
                 "rms_norm(%x, %g) {eps=0} : f32[1,2]", {{3, 4}, {1, 2}})[0]
                 .data,
             {3 / std::sqrt(12.5), 8 / std::sqrt(12.5)});
  check_near(run("%x: f32[1,2], %g: f32[2], %b: f32[2]",
                 "layer_norm(%x, %g, %b) {eps=0} : f32[1,2]",
                 {{3, 5}, {1, 2}, {10, 20}})[0]
                 .data,
             {9, 22});
}

TEST_CASE("products by hand") {
  std::vector<double> a = {1, 2, 3, 4}, b = {5, 6, 7, 8};
  const std::string args = "%a: f32[2,2], %b: f32[2,2]";
  check_near(run(args, "matmul(%a, %b) : f32[2,2]", {a, b})[0].data,
             {19, 22, 43, 50});
  check_near(
      run(args, "matmul(%a, %b) {transpose_b, scale=2} : f32[2,2]", {a, b})[0]
          .data,
      {34, 46, 78, 106});
  check_near(
      run(args, "matmul(%a, %b) {transpose_a} : f32[2,2]", {a, b})[0].data,
      {26, 30, 38, 44});
  // Row 0 by expert 0, row 1 by expert 2, row 2 by none.
  check_near(run("%x: f32[3,1], %w: f32[3,1,2], %o: i32[4], %b: f32[3,2]",
                 "grouped_matmul(%x, %w, %o, %b) : f32[3,2]",
                 {{2, 3, 4},
                  {1, 10, 0, 0, 5, 7},
                  {0, 1, 1, 2},
                  {0.5, 0.5, 9, 9, 1, 1}})[0]
                 .data,
             {2.5, 20.5, 16, 22, 0, 0});
}

TEST_CASE("attention agrees with plain loops") {
  i64 heads = 4, kv = 2, t = 3, tk = 5, d = 2;
  auto draw = [](i64 n, uint64_t seed) {
    return random_tensor({{DType::F32, {n}}, -2, 2}, seed).data;
  };
  auto q = draw(heads * t * d, 1), k = draw(kv * tk * d, 2),
       v = draw(kv * tk * d, 3);
  auto out =
      run("%q: f32[1,4,3,2], %k: f32[1,2,5,2], %v: f32[1,2,5,2]",
          "attention(%q, %k, %v) {causal, window=4, scale=0.5} : f32[1,4,3,2], "
          "f32[1,4,3]",
          {q, k, v}, "%o, %lse");
  for (i64 h = 0; h < heads; ++h)
    for (i64 i = 0; i < t; ++i) {
      const double* kh = k.data() + h / 2 * tk * d;
      const double* vh = v.data() + h / 2 * tk * d;
      double sum = 0, o[2] = {0, 0};
      for (i64 j = 0; j < tk; ++j) {
        i64 distance = i + tk - t - j;
        if (distance < 0 || distance >= 4) continue;
        double s = 0;
        for (i64 x = 0; x < d; ++x) s += q[(h * t + i) * d + x] * kh[j * d + x];
        double e = std::exp(0.5 * s);
        sum += e;
        for (i64 x = 0; x < d; ++x) o[x] += e * vh[j * d + x];
      }
      for (i64 x = 0; x < d; ++x)
        CHECK(out[0].data[(h * t + i) * d + x] ==
              doctest::Approx(o[x] / sum).epsilon(1e-12));
      CHECK(out[1].data[h * t + i] ==
            doctest::Approx(std::log(sum)).epsilon(1e-12));
    }
}

TEST_CASE("layouts change the order of elements and nothing else") {
  auto same = [](const std::string& a, const std::string& b) {
    auto f = parse_graph(a), g = parse_graph(b);
    std::vector<Tensor> in;
    for (Node* x : f->args())
      in.push_back(random_tensor({x->type(), -2, 2}, in.size()));
    auto want = interpret(*f, in), got = interpret(*g, in);
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < want.size(); ++i)
      CHECK(difference(got[i], want[i], 0) == "");
  };
  const std::string head =
      "func @f(%q: f32[2,5,4,8], %k: f32[2,5,2,8], %v: f32[2,5,2,8]) {\n"
      "  // a\n";
  same(head +
           "%a = transpose(%q) {perm=[0,2,1,3]} : f32[2,4,5,8]\n"
           "%b = transpose(%k) {perm=[0,2,1,3]} : f32[2,2,5,8]\n"
           "%c = transpose(%v) {perm=[0,2,1,3]} : f32[2,2,5,8]\n"
           "%r = rope(%a) : f32[2,4,5,8]\n"
           "%o, %l = attention(%r, %b, %c) {causal} : f32[2,4,5,8], "
           "f32[2,4,5]\n"
           "%t = transpose(%o) {perm=[0,2,1,3]} : f32[2,5,4,8]\n"
           "return %t, %l\n}\n",
       head +
           "%r = rope(%q) {axis=-3} : f32[2,5,4,8]\n"
           "%o, %l = attention(%r, %k, %v) {causal, layout=\"bthd\"} : "
           "f32[2,5,4,8], f32[2,4,5]\nreturn %o, %l\n}\n");
}

TEST_CASE("rope rotates pairs by their position") {
  // Width 4: pair 0 turns by the position, pair 1 by position / 100.
  auto y =
      run("%x: f32[2,4]", "rope(%x) : f32[2,4]", {{1, 2, 3, 4, 1, 2, 3, 4}})[0]
          .data;
  double slow = double(0.01f);
  check_near(
      y,
      {1, 2, 3, 4, std::cos(1) - 3 * std::sin(1),
       2 * std::cos(slow) - 4 * std::sin(slow), 3 * std::cos(1) + std::sin(1),
       4 * std::cos(slow) + 2 * std::sin(slow)},
      1e-7);
}

TEST_CASE("cross entropy: uniform logits, ignored targets") {
  auto out = run(
      "%x: f32[3,4], %t: i32[3]", "cross_entropy(%x, %t) : f32[3], f32[3]",
      {{1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, std::log(5)}, {2, -1, 3}}, "%l, %s");
  check_near(out[0].data, {std::log(4), 0, std::log(8.0 / 5)});
  check_near(out[1].data, {1 + std::log(4), std::log(4), std::log(8)});
  CHECK_THROWS_AS(
      run("%x: f32[1,4], %t: i32[1]", "cross_entropy(%x, %t) : f32[1], f32[1]",
          {{1, 1, 1, 1}, {4}}, "%l, %s"),
      UserError);
}

TEST_CASE("indices out of range are errors, negative ones read zeros") {
  CHECK(run("%x: f32[2,1], %i: i32[3]", "gather(%x, %i) : f32[3,1]",
            {{5, 7}, {1, -1, 0}})[0]
            .data == std::vector<double>{7, 0, 5});
  CHECK_THROWS_AS(run("%x: f32[2,1], %i: i32[1]", "gather(%x, %i) : f32[1,1]",
                      {{5, 7}, {2}}),
                  UserError);
  CHECK(run("%i: i32[4], %u: f32[4]", "scatter_add(%i, %u) {rows=2} : f32[2]",
            {{1, -1, 1, 0}, {1, 2, 4, 8}})[0]
            .data == std::vector<double>{8, 5});
  CHECK(run("%i: i32[1,3], %v: f32[1,3]",
            "put_along(%i, %v) {size=4} : f32[1,4]", {{2, 2, -1}, {1, 4, 9}})[0]
            .data == std::vector<double>{0, 0, 5, 0});
}

TEST_CASE("offsets that do not fit are errors") {
  for (std::vector<double> offsets :
       {std::vector<double>{0, 2, 1}, {0, 2, 4}, {-1, 2, 3}, {0, 5, 3}}) {
    CHECK_THROWS_AS(run("%x: f32[3,1], %o: i32[3]",
                        "segment_sum(%x, %o) : f32[2,1]", {{1, 2, 3}, offsets}),
                    UserError);
    CHECK_THROWS_AS(run("%x: f32[3,1], %w: f32[2,1,1], %o: i32[3]",
                        "grouped_matmul(%x, %w, %o) : f32[3,1]",
                        {{1, 2, 3}, {1, 1}, offsets}),
                    UserError);
  }
}

TEST_CASE("random numbers are those of support/rng.h") {
  auto u = run("%k: u32[2]",
               "random_uniform(%k) {shape=[100,100], stream=5} : f32[100,100]",
               {{7, 9}})[0]
               .data;
  uint64_t key = 7 | uint64_t(9) << 32;
  double mean = 0;
  for (size_t i = 0; i < u.size(); ++i) {
    mean += u[i] / double(u.size());
    if (i % 997 == 0)
      CHECK(u[i] == uniform_from_word<double>(random_word(key, 5, i64(i))));
  }
  CHECK(mean == doctest::Approx(0.5).epsilon(0.02));
  auto n = run("%k: u32[2]", "random_normal(%k) {shape=[10000]} : f32[10000]",
               {{7, 9}})[0]
               .data;
  double square = 0;
  for (double x : n) square += x * x / double(n.size());
  CHECK(square == doctest::Approx(1).epsilon(0.05));
  auto dropped =
      run("%x: f32[10000], %k: u32[2]", "dropout(%x, %k) {p=0.25} : f32[10000]",
          {std::vector<double>(10000, 3), {7, 9}})[0]
          .data;
  int kept = 0;
  for (double x : dropped) {
    CHECK((x == 0 || x == 4));
    kept += x != 0;
  }
  CHECK(kept == doctest::Approx(7500).epsilon(0.03));
}

TEST_CASE("adamw: the first step is lr times the sign, plus decay") {
  auto out = run(
      "%p: f32[2], %g: f32[2], %m: f32[2], %lr: f32[], %step: f32[], %s: f32[]",
      "adamw(%p, %g, %m, %m, %lr, %step, %s) {weight_decay=0.1} : f32[2], "
      "f32[2], f32[2]",
      {{1, -2}, {0.5, -4}, {0, 0}, {0.01}, {1}, {0.5}}, "%a, %b, %c");
  check_near(out[0].data, {1 - 0.01 * (1 + 0.1), -2 + 0.01 * (1 + 0.2)}, 1e-7);
  check_near(out[1].data, {0.1 * 0.25, 0.1 * -2});
  check_near(out[2].data, {0.001 * 0.0625, 0.001 * 4});
}

TEST_CASE("the interpreter checks its arguments") {
  auto g = parse_graph(
      "func @f(%x: f32[2]) {\n  %y = exp(%x) : f32[2]\n  return %y\n}\n");
  CHECK_THROWS_AS(interpret(*g, {}), UserError);
  CHECK_THROWS_AS(interpret(*g, {Tensor::zeros({DType::F32, {3}})}), UserError);
  auto grad = parse_graph(
      "func @f(%x: f32[]) {\n  %y = grad(%x, %x) : f32[]\n  return %y\n}\n");
  CHECK_THROWS_AS(interpret(*grad, {Tensor::zeros({DType::F32, {}})}),
                  UserError);
}

}  // namespace moec
