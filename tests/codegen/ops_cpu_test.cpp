// Every op on the CPU backend against the interpreter, at every feature level
// of this host, and with the same bits for 1, 2 and 3 threads.
#include <set>

#include "codegen/cpu/lower.h"
#include "ir/op_def.h"
#include "tests/codegen/harness.h"
#include "tests/codegen/node_runner.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

bool runs_on_cpu(const Graph& g, const Target& t) {
  for (Node* n : g)
    if (n->op() != Op::Arg && n->op() != Op::Return && !cpu_supports(*n, t))
      return false;
  return true;
}

std::vector<OpCase> cases_and_bf16() {
  std::vector<OpCase> all = op_cases();
  for (const OpCase& c : op_cases())
    if (runs_in_bf16(c)) all.push_back(in_bf16(c));
  return all;
}

}  // namespace

TEST_CASE("every op agrees with the interpreter at every feature level") {
  for (const Target& t : test_targets()) {
    CAPTURE(t.level);
    NodeRunner runner(t, 2);
    // bf16 conversions per level are tested with emit.h.
    bool native = t.level == "native" || long_tests();
    for (const OpCase& c : native ? cases_and_bf16() : op_cases()) {
      CAPTURE(c.name);
      auto g = build_graph(c);
      if (!runs_on_cpu(*g, t)) continue;
      auto in = random_inputs(c);
      auto want = interpret(*g, in);
      std::vector<Tensor> got;
      try {
        got = runner.run(*g, in);
      } catch (const std::exception& e) {
        FAIL_CHECK(std::string(e.what()));
        continue;
      }
      for (size_t i = 0; i < want.size(); ++i) {
        CAPTURE(i);
        CHECK_MESSAGE(difference(got[i], want[i], c.tolerance) == "",
                      difference(got[i], want[i], c.tolerance));
      }
      CHECK(!runner.overrun());
    }
  }
}

TEST_CASE("the number of threads changes no bit") {
  const Target& t = host_target();
  NodeRunner one(t, 1), two(t, 2), three(t, 3);
  for (const OpCase& c : cases_and_bf16()) {
    CAPTURE(c.name);
    auto g = build_graph(c);
    if (!runs_on_cpu(*g, t)) continue;
    auto in = random_inputs(c);
    auto a = one.run(*g, in), b = two.run(*g, in), d = three.run(*g, in);
    for (size_t i = 0; i < a.size(); ++i)
      for (size_t j = 0; j < a[i].data.size(); ++j) {
        bool same =
            std::memcmp(&a[i].data[j], &b[i].data[j], sizeof(double)) == 0 &&
            std::memcmp(&a[i].data[j], &d[i].data[j], sizeof(double)) == 0;
        if (!same) FAIL_CHECK("result ", i, " element ", j);
        if (!same) break;
      }
  }
}

TEST_CASE("every op has a lowering or a decomposition") {
  const std::set<Op> structure = {Op::Arg, Op::Return, Op::Grad};
  for (int i = 0; i < kNumOps; ++i) {
    Op op = Op(i);
    if (structure.count(op)) continue;
    CAPTURE(op_name(op));
    CHECK((cpu_lowering(op) || def(op).decompose));
  }
}

}  // namespace moec
