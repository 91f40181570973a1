// Gradient clipping and the optimizer step.
#include <cmath>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

Types infer_global_norm(const InferArgs& a) {
  DType t = DType::F32;
  for (size_t i = 0; i < a.in.size(); ++i) {
    expect_float(a, int(i));
    if (a.in[i].dtype == DType::F64) t = DType::F64;
  }
  return {Type{t, {}}};
}

void eval_global_norm(const EvalArgs& a) {
  double sum = 0;
  for (const Tensor* g : a.in)
    for (double x : g->data) sum += x * x;
  a.out[0].data[0] = std::sqrt(sum);
}

Values decompose_global_norm(Builder& b, Node& n) {
  Value total;
  for (Value g : n.operands()) {
    Value x = b.cast(g, n.type().dtype);
    std::vector<i64> axes;
    for (i64 i = 0; i < x.type().rank(); ++i) axes.push_back(i);
    total = add_some(b, total, b.sum(b.mul(x, x), axes));
  }
  return {b.op(Op::Sqrt, {total})};
}

// d norm / d g = g / norm, and 0 where all are 0.
Values vjp_global_norm(Builder& b, Node& n, Gradients dy) {
  Value tiny = b.scalar(1e-30, n.type().dtype);
  Value factor = b.div(dy[0], b.op(Op::Maximum, {n.result(), tiny}));
  Values g;
  for (Value x : n.operands())
    g.push_back(b.mul(x, b.cast(factor, x.type().dtype)));
  return g;
}

// p, g, m, v, lr, step, scale
Types infer_adamw(const InferArgs& a) {
  for (int i : {0, 1}) expect_float(a, i);
  if (a.in[0].dtype != stat_dtype(a.in[0].dtype))
    user_error(
        "adamw: {} should be f32: keep the master weights in full "
        "precision",
        describe(a, 0));
  expect_dims(a, 1, a.in[0].dims);
  for (int i : {2, 3}) expect_same(a, i, 0);
  for (int i : {4, 5, 6}) {
    expect_float(a, i);
    expect_rank(a, i, 0);
  }
  return {a.in[0], a.in[0], a.in[0]};
}

void eval_adamw(const EvalArgs& a) {
  const auto &p = a.in[0]->data, &g = a.in[1]->data, &m = a.in[2]->data,
             &v = a.in[3]->data;
  double lr = a.in[4]->data[0], step = a.in[5]->data[0];
  double scale = a.in[6]->data[0];
  double beta1 = a.node.f("beta1"), beta2 = a.node.f("beta2");
  double correct1 = 1 - std::pow(beta1, step);
  double correct2 = 1 - std::pow(beta2, step);
  double eps = a.node.f("eps"), decay = a.node.f("weight_decay");
  for (size_t i = 0; i < p.size(); ++i) {
    double gradient = g[i] * scale;
    double mean = beta1 * m[i] + (1 - beta1) * gradient;
    double square = beta2 * v[i] + (1 - beta2) * gradient * gradient;
    double update =
        mean / correct1 / (std::sqrt(square / correct2) + eps) + decay * p[i];
    a.out[0].data[i] = p[i] - lr * update;
    a.out[1].data[i] = mean;
    a.out[2].data[i] = square;
  }
}

const AttrDef kAdamWAttrs[] = {
    optional("beta1", 0.9, "decay of the mean gradient"),
    optional("beta2", 0.999, "decay of the mean square"),
    optional("eps", 1e-8, "added to the root of the mean square"),
    optional("weight_decay", 0.01, "decoupled decay of p, times lr")};

}  // namespace

const OpDef kGlobalNorm = {
    .name = "global_norm",
    .summary = "Root of the sum of squares of all elements of all operands.",
    .min_inputs = 1,
    .max_inputs = -1,
    .infer = infer_global_norm,
    .vjp = vjp_global_norm,
    .decompose = decompose_global_norm,
    .eval = eval_global_norm,
    .cost =
        [](const Node& n) {
          double count = 0;
          for (Value v : n.operands()) count += double(v.type().numel());
          return io_cost(n, 2 * count);
        },
};

const OpDef kAdamW = {
    .name = "adamw",
    .summary =
        "One step of Adam with decoupled weight decay (Loshchilov and "
        "Hutter, 2019): p, m and v after the gradient scale g; step "
        "counts from 1.",
    .min_inputs = 7,
    .max_inputs = 7,
    .traits = kNotDifferentiable,
    .attrs = kAdamWAttrs,
    .operand_names = {"p", "g", "m", "v", "lr", "step", "scale"},
    .infer = infer_adamw,
    .eval = eval_adamw,
    .cost =
        [](const Node& n) {
          return io_cost(n, 14.0 * double(n.type().numel()));
        },
};

}  // namespace moec::ops
