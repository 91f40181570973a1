// Every differentiable case: its gradient against central finite differences
// in double.
#include <absl/container/flat_hash_map.h>

#include <cmath>

#include "ir/op_def.h"
#include "ir/verifier.h"
#include "support/rng.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

// An op without a gradient of its own is differentiated through its meaning.
void decompose_where_needed(Graph& g) {
  for (bool changed = true; changed;) {
    changed = false;
    for (Node* n : g) {
      const OpDef& d = n->def();
      if (d.vjp || !d.decompose || (d.traits & kNotDifferentiable)) continue;
      Builder b(g, n);
      Values meaning = d.decompose(b, *n);
      for (int i = 0; i < n->num_results(); ++i)
        g.replace_all_uses(n->result(i), meaning[i]);
      g.erase(n);
      changed = true;
    }
  }
}

// d loss / d x for each x, by one sweep backwards over all nodes.
std::vector<Value> reverse_sweep(Graph& g, Value loss,
                                 absl::Span<const Value> xs) {
  Builder b(g);
  absl::flat_hash_map<Value, Value> gradient;
  gradient[loss] = b.constant(loss.type(), 1);
  for (Node* n = loss.node; n; n = n->prev()) {
    if (!n->def().vjp || has_trait(*n, kNotDifferentiable)) continue;
    Values dy;
    bool any = false;
    for (int i = 0; i < n->num_results(); ++i) {
      auto it = gradient.find(n->result(i));
      dy.push_back(it == gradient.end() ? Value{} : it->second);
      any |= bool(dy.back());
    }
    if (!any) continue;
    Values dx = n->def().vjp(b, *n, dy);
    REQUIRE(int(dx.size()) == n->num_operands());
    for (int i = 0; i < n->num_operands(); ++i) {
      if (!dx[i]) continue;
      REQUIRE(dx[i].type() == n->operand(i).type());
      Value& sum = gradient[n->operand(i)];
      sum = sum ? b.add(sum, dx[i]) : dx[i];
    }
  }
  std::vector<Value> out;
  for (Value x : xs) {
    auto it = gradient.find(x);
    out.push_back(it == gradient.end() ? b.zeros_like(x) : it->second);
  }
  return out;
}

// loss = sum over the chosen float results of sum(result * weights); the
// weights are arguments after the case's own.
struct LossGraph {
  std::unique_ptr<Graph> graph;
  std::vector<Tensor> args;
  Value loss;
};

LossGraph make_loss(const OpCase& c, const std::vector<int>& chosen) {
  LossGraph l{build_graph(c), random_inputs(c), {}};
  Graph& g = *l.graph;
  std::vector<Value> results(g.outputs().begin(), g.outputs().end());
  Builder b(g);
  for (int i : chosen) {
    Type t = results[i].type();
    Value w = g.add_arg("w" + std::to_string(i), t);
    l.args.push_back(random_tensor({t}, uint64_t(40 + i)));
    std::vector<i64> axes;
    for (i64 axis = 0; axis < t.rank(); ++axis) axes.push_back(axis);
    Value part = b.sum(b.mul(results[i], w), axes);
    l.loss = l.loss ? b.add(l.loss, part) : part;
  }
  g.set_outputs({l.loss});
  return l;
}

void check_gradient(const OpCase& c, const std::vector<int>& chosen) {
  LossGraph l = make_loss(c, chosen);
  std::vector<int> floats;
  for (int i = 0; i < int(c.inputs.size()); ++i)
    if (is_float(c.inputs[i].type.dtype)) floats.push_back(i);

  auto backward = l.graph->clone();
  decompose_where_needed(*backward);
  std::vector<Value> xs;
  for (int i : floats) xs.push_back(backward->args()[i]->result());
  backward->set_outputs(reverse_sweep(*backward, backward->outputs()[0], xs));
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
    auto g = build_graph(c);
    std::vector<int> all;
    for (int i = 0; i < int(g->outputs().size()); ++i)
      if (is_float(g->outputs()[i].type().dtype)) all.push_back(i);
    REQUIRE(!all.empty());
    check_gradient(c, all);
    if (all.size() > 1)  // the gradients of the other results are none
      for (int i : all) check_gradient(c, {i});
  }
}

TEST_CASE("a gradient makes no node that it does not need") {
  // Products with weights under a batch: the gradient of the weights is one
  // product over the rows, without a copy of them for each batch.
  Graph g("f");
  Value x = g.add_arg("x", {DType::F32, {4, 6, 8}});
  Value w = g.add_arg("w", {DType::F32, {8, 3}});
  Builder b(g);
  Value y = b.matmul(x, w);
  Value loss = b.sum(b.mul(y, y), {0, 1, 2});
  g.set_outputs(reverse_sweep(g, loss, {w}));
  for (Node* n : g)
    for (const Type& t : n->types()) CHECK(t.numel() <= 4 * 6 * 8);
}

}  // namespace moec
