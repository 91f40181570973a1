// The op table itself: nothing is forgotten for any op.
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "ir/op_def.h"
#include "ir/op_docs.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {

TEST_CASE("every op is defined in full") {
  for (int i = 0; i < kNumOps; ++i) {
    auto op = Op(i);
    const OpDef& d = def(op);
    INFO(op_name(op));
    CHECK(d.name == op_name(op));
    CHECK(parse_op(d.name) == op);
    CHECK(d.summary.size() >= 3);
    CHECK(d.summary.back() == '.');
    CHECK(bool(d.infer));
    bool structural = op == Op::Arg || op == Op::Return;
    CHECK((structural || d.eval || d.decompose));
    if (d.traits & kFused) CHECK(bool(d.decompose));
    bool gradient = d.vjp || d.decompose;
    CHECK((structural || gradient || (d.traits & kNotDifferentiable)));
    CHECK((!d.vjp || !(d.traits & kNotDifferentiable)));
    CHECK((d.max_inputs < 0 || d.max_inputs >= d.min_inputs));
    if (d.max_inputs >= 0) CHECK(int(d.operand_names.size()) == d.max_inputs);
    std::set<std::string_view> names;
    for (const AttrDef& a : d.attrs) {
      INFO(a.name);
      CHECK(names.insert(a.name).second);
      CHECK(a.doc.size() >= 3);
      if (!a.required) CHECK(AttrKind(a.value.index()) == a.kind);
    }
  }
}

TEST_CASE("every op has a case, and every case runs its op") {
  std::set<Op> tested;
  std::set<std::string> names;
  for (const OpCase& c : op_cases()) {
    INFO(c.name);
    CHECK(names.insert(c.name).second);
    CHECK(c.name.substr(0, c.name.find('/')) == op_name(c.op));
    auto g = build_graph(c);
    bool found = false;
    for (Node* n : *g) found |= n->op() == c.op;
    CHECK(found);
    tested.insert(c.op);
  }
  for (int i = 0; i < kNumOps; ++i) {
    auto op = Op(i);
    if (op == Op::Arg || op == Op::Return || op == Op::Grad) continue;
    INFO(op_name(op));
    CHECK(tested.count(op) == 1);
  }
}

TEST_CASE("docs/ops.md is what the definitions say") {
  std::string text = ops_markdown();
  if (std::getenv("MOEC_UPDATE_DOCS")) std::ofstream("docs/ops.md") << text;
  std::stringstream file;
  file << std::ifstream("docs/ops.md").rdbuf();
  CHECK_MESSAGE(file.str() == text,
                "run MOEC_UPDATE_DOCS=1 build/release/test_ops in the root");
  for (int i = 0; i < kNumOps; ++i)
    CHECK(text.find("### `" + std::string(op_name(Op(i))) + "(") !=
          std::string::npos);
}

TEST_CASE("costs count what moves and what is computed") {
  Graph g("f");
  Value a = g.add_arg("a", {DType::F32, {4, 8}});
  Value w = g.add_arg("w", {DType::F32, {8, 16}});
  Builder b(g);
  Cost product = cost_of(*b.matmul(a, w).node);
  CHECK(product.flops == 2.0 * 4 * 8 * 16);
  CHECK(product.bytes == 4.0 * (4 * 8 + 8 * 16 + 4 * 16));
  CHECK(cost_of(*b.reshape(a, {32}).node).flops == 0);
  CHECK(cost_of(*b.exp(a).node).flops == 32);
  for (const OpCase& c : op_cases()) {
    INFO(c.name);
    auto graph = build_graph(c);
    for (Node* n : *graph) {
      if (n->op() == Op::Arg || n->op() == Op::Return) continue;
      Cost cost = cost_of(*n);
      CHECK(cost.flops >= 0);
      CHECK(cost.bytes > 0);
    }
  }
}

}  // namespace moec
