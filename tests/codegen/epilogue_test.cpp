// Fusions that start with a product, against the interpreter: every kind of
// extra operand, several results, odd sizes, at each feature level.
#include "codegen/tensor_io.h"
#include "ir/builder.h"
#include "ir/text.h"
#include "passes/pass_manager.h"
#include "tests/codegen/harness.h"
#include "tests/codegen/node_runner.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

#include <array>

namespace moec {
namespace {

// The graph after fuse-epilogue, which must leave one fusion of that kind and
// no other computation but reshapes.
std::unique_ptr<Graph> fused(const Graph& g, const std::string& kind) {
  auto f = g.clone();
  PassContext ctx;
  run_passes(*f, {"fuse-epilogue"}, ctx);
  int fusions = 0;
  for (Node* n : *f)
    if (n->op() == Op::Fusion) {
      CHECK(n->s("kind") == kind);
      ++fusions;
    } else {
      bool free = n->op() == Op::Arg || n->op() == Op::Return ||
                  n->op() == Op::Reshape || n->op() == Op::Route;
      CHECK(free);
    }
  CHECK(fusions == 1);
  return f;
}

void check_same(const std::vector<Tensor>& got, const std::vector<Tensor>& want,
                double tolerance) {
  for (size_t i = 0; i < want.size(); ++i) {
    std::string where = difference(got[i], want[i], tolerance);
    CHECK_MESSAGE(where == "", "result ", i, ": ", where);
  }
}

void check_fusion(const Graph& g, const std::string& kind,
                  const std::vector<Tensor>& inputs, double tolerance) {
  auto f = fused(g, kind);
  auto want = interpret(g, inputs, Precision::F64);
  for (const Target& t : test_targets()) {
    NodeRunner runner(t, 2);
    INFO(t.level, "\n", print(*f));
    auto got = runner.run(*f, inputs);
    CHECK(!runner.overrun());
    check_same(got, want, tolerance);
  }
}

std::vector<Tensor> inputs_of(const Graph& g) {
  std::vector<Tensor> in;
  for (Node* a : g.args())
    in.push_back(random_tensor({a->type()}, 7 + in.size()));
  return in;
}

// y = x W with every kind of operand beside it: a value for each element, row
// and column, one for all, a constant; three results.
std::unique_ptr<Graph> everything(i64 rows, i64 k, i64 cols, DType t) {
  auto g = std::make_unique<Graph>("everything");
  Value x = g->add_arg("x", {t, {2, rows, k}});
  Value w = g->add_arg("w", {t, {k, cols}});
  Value full = g->add_arg("full", {DType::F32, {2 * rows, cols}});
  Value row = g->add_arg("row", {DType::F32, {2, rows, 1}});
  Value column = g->add_arg("column", {DType::F32, {cols}});
  Value one = g->add_arg("one", {DType::F32, {}});
  Builder b(*g);
  Value y = b.cast(b.matmul(x, w), DType::F32);
  Value u = b.add(y, column);
  Value a = b.mul(b.op(Op::Gelu, {u}), row);
  Value s = b.add(b.reshape(a, {2 * rows, cols}), full);
  Value z = b.mul(b.add(s, one), 0.5);
  g->set_outputs({u, z, b.cast(z, DType::BF16)});
  return g;
}

TEST_CASE("epilogues of matmul: every operand, odd sizes, several k blocks") {
  using Sizes = std::array<i64, 3>;
  for (auto [rows, k, cols] :
       {Sizes{3, 5, 7}, Sizes{16, 8, 64}, Sizes{37, 70, 45}, Sizes{8, 1100, 33},
        Sizes{1, 4, 1}}) {
    auto g = everything(rows, k, cols, DType::F32);
    check_fusion(*g, "matmul", inputs_of(*g), 0.01);
  }
  auto g = everything(9, 36, 34, DType::BF16);
  check_fusion(*g, "matmul", inputs_of(*g), 0.03);
}

TEST_CASE("a residual sum stays exact to f32") {
  for (i64 cols : {5, 64, 100}) {
    Graph g("residual");
    Value x = g.add_arg("x", {DType::F32, {50, 24}});
    Value w = g.add_arg("w", {DType::F32, {cols, 24}});
    Value r = g.add_arg("r", {DType::F32, {50, cols}});
    Builder b(g);
    g.set_outputs({b.add(r, b.matmul(x, w, false, true))});
    check_fusion(g, "matmul", inputs_of(g), 1e-5);
  }
}

struct ExpertGraph {
  explicit ExpertGraph(i64 dim) : g("experts"), b(g) {
    constexpr i64 kTokens = 70, kHidden = 9, kExperts = 3;
    Value x = g.add_arg("x", {DType::F32, {kTokens, dim}});
    Value w = g.add_arg("w", {DType::F32, {kTokens, 2}});
    Value idx = g.add_arg("idx", {DType::I32, {kTokens, 2}});
    Value up = g.add_arg("up", {DType::F32, {kExperts, kHidden, dim}});
    Value down = g.add_arg("down", {DType::F32, {kExperts, dim, kHidden}});
    r = g.add_arg("r", {DType::F32, {kTokens, dim}});
    inputs = inputs_of(g);
    for (i64 i = 0; i < kTokens; ++i)
      for (i64 j = 0; j < 2; ++j)
        inputs[2].data[size_t(2 * i + j)] = double((i * i + j) % kExperts);
    Node* route = b.node(Op::Route, {idx}, {{"experts", kExperts}});
    operands = {x,  w,   route->result(0), route->result(1), route->result(2),
                up, down};
    y = b.node(Op::MoeFfn, operands, {{"activation", std::string("gelu")}});
  }

  Graph g;
  Builder b;
  Value r;
  Values operands;
  Node* y;
  std::vector<Tensor> inputs;
};

TEST_CASE("a residual sum in the combine of experts") {
  for (i64 dim : {5, 32, 40}) {
    ExpertGraph e(dim);
    e.g.set_outputs({e.b.add(e.r, e.y->result())});
    check_fusion(e.g, "experts", e.inputs, 1e-4);
  }
}

// The saved hidden values have another layout inside the kernels, so this is
// compared through the kernels themselves.
TEST_CASE("elementwise ops in the combine of the experts' gradient") {
  for (i64 dim : {5, 32, 40}) {
    ExpertGraph e(dim);
    Values back{e.r, e.y->result(1)};
    back.insert(back.end(), e.operands.begin(), e.operands.end());
    Node* d =
        e.b.node(Op::MoeFfnGrad, back, {{"activation", std::string("gelu")}});
    std::vector<Value> outputs{
        e.b.mul(e.b.add(e.operands[0], d->result()), 2.0)};
    for (int i = 1; i < d->num_results(); ++i) outputs.push_back(d->result(i));
    e.g.set_outputs(outputs);
    auto f = e.g.clone();
    PassContext ctx;
    CHECK(run_passes(*f, {"fuse-epilogue"}, ctx)[0].changed);
    for (const Target& t : test_targets()) {
      NodeRunner runner(t, 2);
      auto got = runner.run(*f, e.inputs), want = runner.run(e.g, e.inputs);
      CHECK(!runner.overrun());
      check_same(got, want, 1e-6);
    }
  }
}

}  // namespace
}  // namespace moec
