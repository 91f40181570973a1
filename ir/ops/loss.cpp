// Cross entropy of logits, and fused with the projection that makes them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

Types row_statistics(const Type& x) {
  Type t{stat_dtype(x.dtype), {x.dims[0]}};
  return {t, t};
}

void expect_rows(const InferArgs& a, int i, DType t) {
  expect_dtype(a, i, t);
  expect_dims(a, i, {a.in[0].dims[0]});
}

// logits [N,V], targets [N]
Types infer_cross_entropy(const InferArgs& a) {
  expect_float(a, 0);
  expect_rank(a, 0, 2);
  expect_rows(a, 1, DType::I32);
  return row_statistics(a.in[0]);
}

// logits, targets, lse [N], dloss [N]
Types infer_cross_entropy_grad(const InferArgs& a) {
  infer_cross_entropy(a);
  for (int i : {2, 3}) expect_rows(a, i, stat_dtype(a.in[0].dtype));
  return {a.in[0]};
}

i64 checked_target(const EvalArgs& a, double target, i64 classes) {
  if (target < -1 || target >= double(classes))
    user_error("{}: target {} is neither a class of [0, {}) nor -1",
               op_name(a.node.op()), target, classes);
  return i64(target);
}

void eval_cross_entropy(const EvalArgs& a) {
  i64 rows = a.in[0]->type.dims[0], classes = a.in[0]->type.dims[1];
  const double* x = a.in[0]->data.data();
  for (i64 r = 0; r < rows; ++r, x += classes) {
    i64 target = checked_target(a, a.in[1]->data[r], classes);
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (i64 j = 0; j < classes; ++j) top = std::max(top, x[j]);
    for (i64 j = 0; j < classes; ++j) sum += std::exp(x[j] - top);
    double lse = top + std::log(sum);
    a.out[0].data[r] = target < 0 ? 0 : lse - x[target];
    a.out[1].data[r] = lse;
  }
}

void eval_cross_entropy_grad(const EvalArgs& a) {
  i64 rows = a.in[0]->type.dims[0], classes = a.in[0]->type.dims[1];
  const double* x = a.in[0]->data.data();
  double* dx = a.out[0].data.data();
  for (i64 r = 0; r < rows; ++r, x += classes, dx += classes) {
    i64 target = checked_target(a, a.in[1]->data[r], classes);
    if (target < 0) continue;
    double lse = a.in[2]->data[r], scale = a.in[3]->data[r];
    for (i64 j = 0; j < classes; ++j) dx[j] = std::exp(x[j] - lse) * scale;
    dx[target] -= scale;
  }
}

Value column(Builder& b, Value rows) {
  return b.reshape(rows, {rows.type().dims[0], 1});
}

Values decompose_cross_entropy(Builder& b, Node& n) {
  Value logits = b.cast(n.operand(0), stat_dtype(n.operand(0).type().dtype));
  Value targets = n.operand(1);
  Value lse = b.op(Op::LogSumExp, {logits}, {{"axis", i64(-1)}});
  Value picked = b.op(Op::TakeAlong, {logits, column(b, targets)});
  Value loss = b.sub(lse, b.reshape(picked, lse.type().dims));
  Value valid = b.compare(targets, b.scalar(0, DType::I32), "ge");
  return {b.select(valid, loss, b.scalar(0, loss.type().dtype)), lse};
}

// (p - onehot) dloss, where a target of -1 makes dloss 0
Values decompose_cross_entropy_grad(Builder& b, Node& n) {
  DType t = stat_dtype(n.type().dtype);
  Value logits = b.cast(n.operand(0), t), targets = n.operand(1);
  Value p = b.exp(b.sub(logits, column(b, n.operand(2))));
  Value hit = b.op(Op::OneHot, {targets},
                   {{"size", logits.type().dims[1]}, {"dtype", t}});
  Value valid = b.compare(targets, b.scalar(0, DType::I32), "ge");
  Value scale = b.select(valid, n.operand(3), b.scalar(0, t));
  return {b.cast(b.mul(b.sub(p, hit), column(b, scale)), n.type().dtype)};
}

// What a gradient of lse adds to that of the logits: softmax times dlse.
Value lse_gradient(Builder& b, Value logits, Value lse, Value dlse) {
  Value p = b.exp(b.sub(b.cast(logits, lse.type().dtype), column(b, lse)));
  return b.cast(b.mul(p, column(b, dlse)), logits.type().dtype);
}

Values vjp_cross_entropy(Builder& b, Node& n, Gradients dy) {
  Value logits = n.operand(0), lse = n.result(1), g;
  if (dy[0]) g = b.op(Op::CrossEntropyGrad, {logits, n.operand(1), lse, dy[0]});
  if (dy[1]) g = add_some(b, g, lse_gradient(b, logits, lse, dy[1]));
  return {g, {}};
}

// ---- with the projection ---------------------------------------------------

// x [N,d], w [V,d], targets [N]; a bias [V] stands at operand `bias`, if there.
void expect_projection(const InferArgs& a, int bias) {
  expect_float(a, 0);
  expect_rank(a, 0, 2);
  expect_dtype_of(a, 1, 0);
  expect_rank(a, 1, 2);
  if (a.in[1].dims[1] != a.in[0].dims[1])
    user_error("{}: {} and {} differ in the last dimension", op_of(a),
               describe(a, 0), describe(a, 1));
  expect_rows(a, 2, DType::I32);
  if (int(a.in.size()) > bias) {
    expect_dtype_of(a, bias, 0);
    expect_dims(a, bias, {a.in[1].dims[0]});
  }
}

Types infer_linear(const InferArgs& a) {
  expect_projection(a, 3);
  return row_statistics(a.in[0]);
}

Types infer_linear_grad(const InferArgs& a) {
  expect_projection(a, 5);
  for (int i : {3, 4}) expect_rows(a, i, stat_dtype(a.in[0].dtype));
  Types t = {a.in[0], a.in[1]};
  if (a.in.size() > 5) t.push_back(a.in[5]);
  return t;
}

// x, w, targets, dloss, optional bias
Types infer_linear_both(const InferArgs& a) {
  expect_projection(a, 4);
  expect_rows(a, 3, stat_dtype(a.in[0].dtype));
  Types t = row_statistics(a.in[0]);
  t.push_back(a.in[0]);
  t.push_back(a.in[1]);
  if (a.in.size() > 4) t.push_back(a.in[4]);
  return t;
}

Value project(Builder& b, Node& n, int bias) {
  Value logits = b.matmul(n.operand(0), n.operand(1), false, true);
  return n.num_operands() > bias ? b.add(logits, n.operand(bias)) : logits;
}

// dx, dw and, with a bias, dbias from those of the logits.
Values projection_gradients(Builder& b, Node& n, Value dlogits, bool bias) {
  Values g = {b.matmul(dlogits, n.operand(1)),
              b.matmul(dlogits, n.operand(0), true, false)};
  if (bias) g.push_back(b.sum(dlogits, {0}));
  return g;
}

Values decompose_linear(Builder& b, Node& n) {
  Node* loss = b.node(Op::CrossEntropy, {project(b, n, 3), n.operand(2)});
  return {loss->result(0), loss->result(1)};
}

Values decompose_linear_grad(Builder& b, Node& n) {
  Value dlogits = b.op(Op::CrossEntropyGrad, {project(b, n, 5), n.operand(2),
                                              n.operand(3), n.operand(4)});
  return projection_gradients(b, n, dlogits, n.num_operands() > 5);
}

Values decompose_linear_both(Builder& b, Node& n) {
  Values in = {n.operand(0), n.operand(1), n.operand(2)};
  const bool bias = n.num_operands() > 4;
  if (bias) in.push_back(n.operand(4));
  Node* loss = b.node(Op::LinearCrossEntropy, in);
  in = {in[0], in[1], in[2], loss->result(1), n.operand(3)};
  if (bias) in.push_back(n.operand(4));
  Node* grad = b.node(Op::LinearCrossEntropyGrad, in);
  Values out = {loss->result(0), loss->result(1)};
  for (int i = 0; i < grad->num_results(); ++i) out.push_back(grad->result(i));
  return out;
}

Values vjp_linear(Builder& b, Node& n, Gradients dy) {
  bool bias = n.num_operands() > 3;
  Value lse = n.result(1);
  Values g(3);  // dx, dw, dbias
  auto collect = [&](auto&& more) {
    for (size_t i = 0; i < more.size(); ++i) g[i] = add_some(b, g[i], more[i]);
  };
  if (dy[0]) {
    Values in = {n.operand(0), n.operand(1), n.operand(2), lse, dy[0]};
    if (bias) in.push_back(n.operand(3));
    Node* grad = b.node(Op::LinearCrossEntropyGrad, in);
    Values results;
    for (int i = 0; i < grad->num_results(); ++i)
      results.push_back(grad->result(i));
    collect(results);
  }
  if (dy[1])
    collect(projection_gradients(
        b, n, lse_gradient(b, project(b, n, 3), lse, dy[1]), bias));
  Values out = {g[0], g[1], {}};
  if (bias) out.push_back(g[2]);
  return out;
}

Cost loss_cost(const Node& n) {
  return io_cost(n, 5.0 * double(n.operand(0).type().numel()));
}

Cost linear_cost(const Node& n) {
  double product = 2.0 * double(n.operand(0).type().numel()) *
                   double(n.operand(1).type().dims[0]);
  bool forward = n.op() == Op::LinearCrossEntropy;
  return io_cost(n, forward ? product : 3 * product);
}

}  // namespace

const OpDef kCrossEntropy = {
    .name = "cross_entropy",
    .summary =
        "Row losses logsumexp(logits) - logits[target] and the "
        "logsumexp; a target of -1 has loss 0 and no gradient.",
    .min_inputs = 2,
    .max_inputs = 2,
    .operand_names = {"logits", "targets"},
    .infer = infer_cross_entropy,
    .vjp = vjp_cross_entropy,
    .decompose = decompose_cross_entropy,
    .eval = eval_cross_entropy,
    .cost = loss_cost,
};

const OpDef kCrossEntropyGrad = {
    .name = "cross_entropy_grad",
    .summary = "dlogits of cross_entropy: (softmax - onehot) dloss.",
    .min_inputs = 4,
    .max_inputs = 4,
    .operand_names = {"logits", "targets", "lse", "dloss"},
    .infer = infer_cross_entropy_grad,
    .decompose = decompose_cross_entropy_grad,
    .eval = eval_cross_entropy_grad,
    .cost = loss_cost,
};

const OpDef kLinearCrossEntropy = {
    .name = "linear_cross_entropy",
    .summary =
        "cross_entropy of the logits x[N,d] w[V,d]^T + bias[V], which "
        "need not be stored.",
    .min_inputs = 3,
    .max_inputs = 4,
    .traits = kFused,
    .operand_names = {"x", "w", "targets", "bias"},
    .infer = infer_linear,
    .vjp = vjp_linear,
    .decompose = decompose_linear,
    .cost = linear_cost,
};

const OpDef kLinearCrossEntropyGrad = {
    .name = "linear_cross_entropy_grad",
    .summary = "dx, dw and, with a bias, dbias of linear_cross_entropy.",
    .min_inputs = 5,
    .max_inputs = 6,
    .traits = kFused,
    .operand_names = {"x", "w", "targets", "lse", "dloss", "bias"},
    .infer = infer_linear_grad,
    .decompose = decompose_linear_grad,
    .cost = linear_cost,
};

const OpDef kLinearCrossEntropyBoth = {
    .name = "linear_cross_entropy_both",
    .summary =
        "linear_cross_entropy and its gradients for a dloss that does not "
        "depend on it: each block of logits is computed once.",
    .min_inputs = 4,
    .max_inputs = 5,
    .traits = kFused | kNotDifferentiable,
    .operand_names = {"x", "w", "targets", "dloss", "bias"},
    .infer = infer_linear_both,
    .decompose = decompose_linear_both,
    .cost = linear_cost,
};

}  // namespace moec::ops
