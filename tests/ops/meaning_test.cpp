// What holds for every row of the table: text round trips, the verifier, and
// a decomposition that means the same as the op.
#include <cmath>

#include "ir/op_def.h"
#include "ir/text.h"
#include "ir/verifier.h"
#include "support/error.h"
#include "support/rng.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

// Replaces each node of `op` by its decomposition; the number replaced.
int decompose_all(Graph& g, Op op) {
  int count = 0;
  for (Node* n : g) {
    if (n->op() != op) continue;
    Builder b(g, n);
    Values meaning = n->def().decompose(b, *n);
    REQUIRE(int(meaning.size()) == n->num_results());
    for (int i = 0; i < n->num_results(); ++i)
      g.replace_all_uses(n->result(i), meaning[i]);
    g.erase(n);
    ++count;
  }
  return count;
}

}  // namespace

TEST_CASE("every case is valid and its text reads back") {
  for (const OpCase& c : op_cases()) {
    INFO(c.name);
    auto g = build_graph(c);
    verify(*g);
    std::string text = print(*g);
    auto parsed = parse_graph(text);
    CHECK(print(*parsed) == text);
    CHECK(structural_key(*parsed) == structural_key(*g));
    CHECK(structural_key(*g->clone()) == structural_key(*g));
  }
}

// One to three bytes of the text are replaced, removed or doubled.
std::string mutated(std::string text, uint64_t seed) {
  auto word = [&](int i) { return random_word(0xbad, seed, i); };
  constexpr std::string_view kBytes = "0123456789-,.[]{}()%:=abefgx_ \n\"";
  for (uint32_t i = 0; i <= word(0) % 3; ++i) {
    size_t at = word(int(3 * i + 1)) % text.size();
    uint32_t how = word(int(3 * i + 2));
    if (how % 4 == 0)
      text.erase(at, 1);
    else if (how % 4 == 1)
      text.insert(at, text.substr(at, how / 4 % 9));
    else
      text[at] = kBytes[how / 4 % kBytes.size()];
  }
  return text;
}

TEST_CASE("damaged text is a graph or a UserError") {
  uint64_t seed = 0;
  int rejected = 0, accepted = 0;
  for (const OpCase& c : op_cases()) {
    std::string text = print(*build_graph(c));
    for (int i = 0; i < (long_tests() ? 2000 : 40); ++i) {
      std::string damaged = mutated(text, ++seed);
      INFO(damaged);
      try {
        auto g = parse_graph(damaged);
        verify(*g);
        ++accepted;
      } catch (const UserError&) {
        ++rejected;
      }
    }
  }
  CHECK(rejected > accepted);
  CHECK(accepted > 0);
}

TEST_CASE("results are finite numbers of their dtype") {
  for (const OpCase& c : op_cases()) {
    INFO(c.name);
    for (Tensor t : interpret(*build_graph(c), random_inputs(c))) {
      Tensor rounded = t;
      round_to_dtype(rounded);
      CHECK(difference(t, rounded, 0) == "");
      bool infinite = c.op == Op::CausalMask || c.op == Op::Constant;
      if (infinite) continue;
      int bad = 0;
      for (double x : t.data) bad += !std::isfinite(x);
      CHECK(bad == 0);
    }
  }
}

TEST_CASE("a decomposition means the same as its op") {
  int compared = 0;
  for (const OpCase& c : op_cases()) {
    const OpDef& d = def(c.op);
    if (!d.decompose) continue;
    INFO(c.name);
    auto fused = build_graph(c);
    auto plain = fused->clone();
    REQUIRE(decompose_all(*plain, c.op) > 0);
    verify(*plain);
    auto in = random_inputs(c);
    auto want = interpret(*fused, in, Precision::F64);
    auto got = interpret(*plain, in, Precision::F64);
    // its constants are attributes, and so f32
    for (size_t i = 0; i < want.size(); ++i)
      CHECK(difference(got[i], want[i], 2e-8) == "");
    compared += d.eval != nullptr;
  }
  CHECK(compared > 20);
}

TEST_CASE("bf16 data give what f32 gives, within their precision") {
  for (const OpCase& c : op_cases()) {
    if (!runs_in_bf16(c)) continue;
    OpCase narrow = in_bf16(c);
    INFO(narrow.name);
    auto g = build_graph(narrow);
    verify(*g);
    auto in = random_inputs(narrow);
    auto got = interpret(*g, in);
    for (Tensor& t : in)
      if (t.type.dtype == DType::BF16) t.type.dtype = DType::F32;
    auto want = interpret(*build_graph(c), in);
    for (size_t i = 0; i < want.size(); ++i) {
      // Statistics stay f32; the rest is bf16.
      if (is_float(want[i].type.dtype)) want[i].type = got[i].type;
      CHECK(difference(got[i], want[i], narrow.tolerance) == "");
    }
  }
}

TEST_CASE("f32 rounds each result, f64 none") {
  auto g = parse_graph(
      "func @f(%x: f32[1]) {\n  %y = mul(%x, %x) : f32[1]\n"
      "  %c = cast(%x) {dtype=bf16} : bf16[1]\n  return %y, %c\n}\n");
  std::vector<Tensor> in = {{{DType::F32, {1}}, {double(1.1f)}}};
  auto typed = interpret(*g, in), exact = interpret(*g, in, Precision::F64);
  CHECK(typed[0].data[0] == double(1.1f * 1.1f));
  CHECK(exact[0].data[0] == double(1.1f) * double(1.1f));
  CHECK(typed[1].data[0] == 1.1015625);
  CHECK(exact[1].data[0] == double(1.1f));
}

}  // namespace moec
