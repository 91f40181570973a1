// Every differentiable case: its gradient against central finite differences
// in double.
#include <cmath>

#include "ir/verifier.h"
#include "passes/pass_manager.h"
#include "support/rng.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

// loss = sum over the chosen float results of sum(result * weights); the
// weights are arguments after the case's own.
struct LossGraph {
  std::unique_ptr<Graph> graph;
  std::vector<Tensor> args;
};

LossGraph make_loss(const OpCase& c, const std::vector<int>& chosen) {
  LossGraph l{build_graph(c), random_inputs(c)};
  Graph& g = *l.graph;
  std::vector<Value> results(g.outputs().begin(), g.outputs().end());
  Builder b(g);
  Value loss;
  for (int i : chosen) {
    Type t = results[i].type();
    Value w = g.add_arg("w" + std::to_string(i), t);
    l.args.push_back(random_tensor({t}, uint64_t(40 + i)));
    std::vector<i64> axes;
    for (i64 axis = 0; axis < t.rank(); ++axis) axes.push_back(axis);
    Value part = b.sum(b.mul(results[i], w), axes);
    loss = loss ? b.add(loss, part) : part;
  }
  g.set_outputs({loss});
  return l;
}

std::vector<int> float_results(const OpCase& c) {
  auto g = build_graph(c);
  std::vector<int> all;
  for (int i = 0; i < int(g->outputs().size()); ++i)
    if (is_float(g->outputs()[i].type().dtype)) all.push_back(i);
  return all;
}

std::vector<int> float_inputs(const OpCase& c) {
  std::vector<int> all;
  for (int i = 0; i < int(c.inputs.size()); ++i)
    if (is_float(c.inputs[i].type.dtype)) all.push_back(i);
  return all;
}

// The gradients of the loss by the arguments `xs`, after the pass grad.
std::unique_ptr<Graph> gradient_graph(const Graph& loss,
                                      const std::vector<int>& xs) {
  auto g = loss.clone();
  std::vector<Value> operands = {g->outputs()[0]};
  for (int i : xs) operands.push_back(g->args()[i]->result());
  Node* n = Builder(*g).node(Op::Grad, operands);
  std::vector<Value> results;
  for (int i = 0; i < n->num_results(); ++i) results.push_back(n->result(i));
  g->set_outputs(results);
  PassContext context;
  run_passes(*g, {"grad"}, context);
  return g;
}

void check_gradient(const OpCase& c, const std::vector<int>& chosen) {
  LossGraph l = make_loss(c, chosen);
  std::vector<int> floats = float_inputs(c);
  auto backward = gradient_graph(*l.graph, floats);
  verify(*backward);
  auto gradients = interpret(*backward, l.args, Precision::F64);

  auto loss = [&] {
    return interpret(*l.graph, l.args, Precision::F64)[0].data[0];
  };
  constexpr size_t kSamples = 12;
  for (size_t f = 0; f < floats.size(); ++f) {
    auto& x = l.args[floats[f]].data;
    double scale = 1e-2;
    for (double d : gradients[f].data) scale = std::max(scale, std::abs(d));
    for (size_t s = 0; s < std::min(kSamples, x.size()); ++s) {
      size_t i =
          x.size() <= kSamples ? s : random_word(7, f, i64(s)) % x.size();
      double before = x[i], h = 1e-5;
      x[i] = before + h;
      double up = loss();
      x[i] = before - h;
      double down = loss();
      x[i] = before;
      double want = (up - down) / (2 * h), got = gradients[f].data[i];
      CHECK_MESSAGE(std::abs(got - want) <= 1e-6 * scale, c.name, ": d x",
                    floats[f], "[", i, "] is ", got, ", finite difference ",
                    want);
    }
  }
}

}  // namespace

TEST_CASE("gradients agree with finite differences") {
  for (const OpCase& c : op_cases()) {
    if (!c.differentiable) continue;
    INFO(c.name);
    std::vector<int> all = float_results(c);
    REQUIRE(!all.empty());
    check_gradient(c, all);
    if (all.size() > 1)  // the gradients of the other results are none
      for (int i : all) check_gradient(c, {i});
  }
}

TEST_CASE("passes keep the gradients of every case") {
  for (const OpCase& c : op_cases()) {
    if (!c.differentiable) continue;
    LossGraph l = make_loss(c, float_results(c));
    auto plain = gradient_graph(*l.graph, float_inputs(c));
    auto want = interpret(*plain, l.args, Precision::F64);
    for (std::vector<std::string> passes :
         {std::vector<std::string>{"canonicalize", "cse", "dce", "fold"},
          {"dce", "fuse-elementwise", "schedule"}}) {
      INFO(c.name, " after ", passes[1]);
      auto g = plain->clone();
      PassContext context;
      run_passes(*g, passes, context);
      auto got = interpret(*g, l.args, Precision::F64);
      for (size_t i = 0; i < want.size(); ++i)
        CHECK(difference(got[i], want[i], 1e-9) == "");
    }
  }
}

TEST_CASE("a gradient makes no more than it needs") {
  // Products with weights under a batch: the gradient of the weights is one
  // product over the rows, without a copy of them for each batch.
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4, 6, 8}});
  Value w = g.add_arg("w", {DType::F32, {8, 3}});
  Builder b(g);
  Value y = b.matmul(x, w);
  g.set_outputs({b.sum(b.mul(y, y), {0, 1, 2})});
  auto backward = gradient_graph(g, {1});
  for (Node* n : *backward)
    for (const Type& t : n->types()) CHECK(t.numel() <= 4 * 6 * 8);
}

}  // namespace moec
