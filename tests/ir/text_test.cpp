// The text form: contract texts, round trips and errors with their place.
#include "ir/text.h"

#include <string>

#include "ir/builder.h"
#include "ir/verifier.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec {
namespace {

const char* kHeads =
    R"(func @heads(%q: f32[2,4,64,32], %k: f32[2,4,64,32], %v: f32[2,4,64,32]) {
  // layer0/attn
  %s  = matmul(%q, %k) {transpose_b, scale=0.17677669} : f32[2,4,64,64]
  %sm = causal_mask(%s)                                : f32[2,4,64,64]
  %p  = softmax(%sm) {axis=-1}                         : f32[2,4,64,64]
  %o  = matmul(%p, %v)                                 : f32[2,4,64,32]
  return %o
}
)";

std::string parse_error(const std::string& text) {
  std::string why = error_of([&] { parse_module(text, "t.ir"); });
  return why.empty() ? "no error" : why;
}

void check_round_trip(const Graph& g) {
  std::string text = print(g);
  auto again = parse_graph(text);
  verify(*again);
  CHECK(print(*again) == text);
  CHECK(structural_key(*again) == structural_key(g));
}

TEST_CASE("the documented text prints as it was parsed") {
  auto g = parse_graph(kHeads);
  verify(*g);
  CHECK(print(*g) == kHeads);
  CHECK(g->outputs()[0].node->where.scope == "layer0/attn");
}

TEST_CASE("values without names are numbered, clashes get a suffix") {
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {2, 3}});
  Builder b(g);
  Value y = b.neg(x);
  Value z = b.exp(y);
  z.node->names = {"x"};
  Value w = b.exp(z);
  w.node->names = {"a b/c"};
  g.set_outputs({w, y}, {"out", "x"});
  CHECK(print(g) ==
        "func @f(%x: f32[2,3]) {\n"
        "  %0     = neg(%x)   : f32[2,3]\n"
        "  %x_1   = exp(%0)   : f32[2,3]\n"
        "  %a_b_c = exp(%x_1) : f32[2,3]\n"
        "  return out = %a_b_c, x = %0\n"
        "}\n");
  check_round_trip(g);
}

TEST_CASE("scopes print where they change and end with a fusion's body") {
  const char* text = R"(func @f(%x: f32[4]) {
  // a/b
  %y = exp(%x)                  : f32[4]
  %z = fusion(%p = %y, %q = %x) : f32[4] {
    // inner
    %s = add(%p, %q) : f32[4]
    return %s
  }
  //
  %w = neg(%z) : f32[4]
  return %w
}
)";
  auto g = parse_graph(text);
  CHECK(print(*g) == std::string(text));
  CHECK(g->outputs()[0].node->where.scope.empty());
  check_round_trip(*g->clone());
}

TEST_CASE("long lists wrap and still round trip") {
  Graph g("many");
  std::vector<Value> args;
  for (int i = 0; i < 40; ++i)
    args.push_back(
        g.add_arg("layers.0.weight_" + std::to_string(i), {DType::F32, {8}}));
  Builder b(g);
  Value all = b.concat(args, 0);
  std::vector<std::string> names(40);
  for (int i = 0; i < 40; ++i) names[i] = "out." + std::to_string(i);
  g.set_outputs(std::vector<Value>(40, all), names);
  std::string text = print(g);
  for (size_t at = 0, end; (end = text.find('\n', at)) != text.npos;
       at = end + 1)
    CHECK(end - at <= 110);
  check_round_trip(g);
}

TEST_CASE("attribute values of every kind round trip") {
  const char* text = R"(func @f(%x: f32[2,6]) {
  %a = constant() {dtype=bf16, shape=[2,3], value=-1.5}      : bf16[2,3]
  %b = constant() {dtype=f32, value=inf}                     : f32[]
  %c = constant() {dtype=f32, value=1e-06}                   : f32[]
  %d = slice(%x) {start=[0,1], limit=[2,5]}                  : f32[2,4]
  %e = compare(%d, %d) {direction="le"}                      : bool[2,4]
  %g = constant() {dtype=i64, shape=[0], value=9007199254740} : i64[0]
  return %a, %b, %c, %e, %g
}
)";
  auto g = parse_graph(text);
  check_round_trip(*g);
  auto values = g->outputs();
  CHECK(values[0].node->f("value") == -1.5);
  CHECK(values[3].node->s("direction") == "le");
  CHECK(values[4].node->f("value") == 9007199254740.0);
}

TEST_CASE("errors name file, line, column and reason") {
  auto with = [](const std::string& line) {
    return parse_error("func @f(%x: f32[2,3]) {\n  " + line +
                       "\n  return %x\n}");
  };
  CHECK(with("%y = frobnicate(%x) : f32[2,3]") ==
        "t.ir:2:8: there is no op 'frobnicate'");
  CHECK(with("%y = exp(%z) : f32[2,3]") == "t.ir:2:12: %z is not defined");
  CHECK(with("%x = exp(%x) : f32[2,3]").find("defined twice") !=
        std::string::npos);
  CHECK(with("%y = exp(%x) : f32[3,3]").find("exp has the type f32[2,3]") !=
        std::string::npos);
  CHECK(with("%y = exp(%x) : f33[2,3]").find("no element type 'f33'") !=
        std::string::npos);
  CHECK(with("%y, %z = exp(%x) : f32[2,3]").find("gives 1 results, not 2") !=
        std::string::npos);
  CHECK(with("%y = exp(%x, %x) : f32[2,3]").find("takes 1 operands") !=
        std::string::npos);
  CHECK(with("%y = exp(%x) {axis=1} : f32[2,3]")
            .find("there is no attribute 'axis'") != std::string::npos);
  CHECK(with("%y = one_hot(%x) : f32[2,3,4]").find("size is missing") !=
        std::string::npos);
  CHECK(with("%y = softmax(%x) {axis=\"a\"} : f32[2,3]")
            .find("wrong kind of value") != std::string::npos);
  CHECK(with("%y = reshape(%x) {shape=[99999999999,99999999999]} : f32[6]")
            .find("t.ir:2:") == 0);
  CHECK(with("%y = arg() : f32[2,3]").find("there is no op 'arg'") !=
        std::string::npos);
  CHECK(parse_error("") ==
        "t.ir:1:1: there is no function ('func @name(...)')");
  CHECK(parse_error("func @f(%x: f32[2]) {") != "no error");
  CHECK(parse_error("func @f() { return }\nfunc @f() { return }") !=
        "no error");
  CHECK(parse_error("func @f(%x: f32[9999999999999999999]) { return }") !=
        "no error");
  CHECK(parse_error("func @f(%x: f32[-1]) { return }") != "no error");
}

TEST_CASE("text cut anywhere or with a byte changed is an error or a graph") {
  std::string text = kHeads;
  for (size_t n = 0; n < text.size(); ++n) parse_error(text.substr(0, n));
  for (size_t n = 0; n < text.size(); ++n)
    for (char c : {'%', '{', '\0', '9', '"', '-'}) {
      std::string t = text;
      t[n] = c;
      parse_error(t);
    }
}

}  // namespace
}  // namespace moec
