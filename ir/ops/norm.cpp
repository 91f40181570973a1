// Softmax and normalisation over the last axis, with their gradients.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

Types infer_same(const InferArgs& a) {
  for (size_t i = 0; i < a.in.size(); ++i) {
    expect_float(a, int(i));
    expect_same(a, int(i), 0);
  }
  axis_attr(a);
  return {a.in[0]};
}

// ---- softmax ---------------------------------------------------------------

void eval_softmax(const EvalArgs& a) {
  AxisView v(a.in[0]->type, axis_of(a.node));
  for (i64 o = 0; o < v.outer; ++o)
    for (i64 i = 0; i < v.inner; ++i) {
      i64 base = o * v.n * v.inner + i;
      const double* x = a.in[0]->data.data() + base;
      double* y = a.out[0].data.data() + base;
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      for (i64 j = 0; j < v.n; ++j) top = std::max(top, x[j * v.inner]);
      for (i64 j = 0; j < v.n; ++j)
        sum += y[j * v.inner] = std::exp(x[j * v.inner] - top);
      for (i64 j = 0; j < v.n; ++j) y[j * v.inner] /= sum;
    }
}

// Operand i, widened so that a decomposition keeps f32 inside.
Value wide(Builder& b, Node& n, int i) {
  DType t = n.operand(i).type().dtype;
  return b.cast(n.operand(i), stat_dtype(t));
}

Values decompose_softmax(Builder& b, Node& n) {
  Value x = wide(b, n, 0);
  i64 axis = axis_of(n);
  Value e = b.exp(b.sub(x, b.reduce_max(x, {axis}, true)));
  return {b.cast(b.div(e, b.sum(e, {axis}, true)), n.type().dtype)};
}

void eval_softmax_grad(const EvalArgs& a) {
  AxisView v(a.in[0]->type, axis_of(a.node));
  for (i64 o = 0; o < v.outer; ++o)
    for (i64 i = 0; i < v.inner; ++i) {
      i64 base = o * v.n * v.inner + i;
      const double *y = a.in[0]->data.data() + base,
                   *dy = a.in[1]->data.data() + base;
      double dot = 0;
      for (i64 j = 0; j < v.n; ++j) dot += y[j * v.inner] * dy[j * v.inner];
      for (i64 j = 0; j < v.n; ++j)
        a.out[0].data[base + j * v.inner] =
            y[j * v.inner] * (dy[j * v.inner] - dot);
    }
}

Values decompose_softmax_grad(Builder& b, Node& n) {
  Value y = wide(b, n, 0), dy = wide(b, n, 1);
  Value dot = b.sum(b.mul(y, dy), {axis_of(n)}, true);
  return {b.cast(b.mul(y, b.sub(dy, dot)), n.type().dtype)};
}

Cost softmax_cost(const Node& n) {
  return io_cost(n, 5.0 * double(n.type().numel()));
}

// ---- norms -----------------------------------------------------------------

void expect_width(const InferArgs& a, int i) {
  expect_dtype_of(a, i, 0);
  expect_dims(a, i, {a.in[0].dim(-1)});
}

Types infer_norm(const InferArgs& a) {
  expect_float(a, 0);
  expect_min_rank(a, 0, 1);
  for (int i = 1; i < int(a.in.size()); ++i) expect_width(a, i);
  return {a.in[0]};
}

// (x, gamma, dy) -> dx, dgamma and for the layer norm dbeta
Types infer_norm_grad(const InferArgs& a) {
  expect_float(a, 0);
  expect_min_rank(a, 0, 1);
  expect_width(a, 1);
  expect_same(a, 2, 0);
  if (a.node.op() == Op::RmsNormGrad) return {a.in[0], a.in[1]};
  return {a.in[0], a.in[1], a.in[1]};
}

// Mean (0 for the RMS norm) and 1 / deviation of a row.
std::pair<double, double> row_statistics(const double* x, i64 d, bool centre,
                                         double eps) {
  double mean = 0, square = 0;
  if (centre) {
    for (i64 i = 0; i < d; ++i) mean += x[i];
    mean /= double(d);
  }
  for (i64 i = 0; i < d; ++i) square += (x[i] - mean) * (x[i] - mean);
  return {mean, 1 / std::sqrt(square / double(d) + eps)};
}

template <bool layer>
void eval_norm(const EvalArgs& a) {
  i64 d = a.in[0]->type.dim(-1);
  const auto& gamma = a.in[1]->data;
  const double* x = a.in[0]->data.data();
  double* y = a.out[0].data.data();
  i64 rows = d ? a.in[0]->type.numel() / d : 0;
  for (i64 r = 0; r < rows; ++r, x += d, y += d) {
    auto [mean, inverse] = row_statistics(x, d, layer, a.node.f("eps"));
    for (i64 i = 0; i < d; ++i) {
      y[i] = (x[i] - mean) * inverse * gamma[i];
      if (layer) y[i] += a.in[2]->data[i];
    }
  }
}

// With h the normalised row and g = dy gamma:
//   dx = (g - mean(g) - h mean(g h)) / deviation
// where mean(g) is left out without centring.
template <bool layer>
void eval_norm_grad(const EvalArgs& a) {
  i64 d = a.in[0]->type.dim(-1);
  const double *x = a.in[0]->data.data(), *dy = a.in[2]->data.data();
  const auto& gamma = a.in[1]->data;
  double* dx = a.out[0].data.data();
  i64 rows = d ? a.in[0]->type.numel() / d : 0;
  for (i64 r = 0; r < rows; ++r, x += d, dy += d, dx += d) {
    auto [mean, inverse] = row_statistics(x, d, layer, a.node.f("eps"));
    double g_mean = 0, gh_mean = 0;
    for (i64 i = 0; i < d; ++i) {
      double h = (x[i] - mean) * inverse, g = dy[i] * gamma[i];
      if (layer) g_mean += g;
      gh_mean += g * h;
      a.out[1].data[i] += dy[i] * h;
      if (layer) a.out[2].data[i] += dy[i];
    }
    g_mean /= double(d);
    gh_mean /= double(d);
    for (i64 i = 0; i < d; ++i)
      dx[i] = inverse *
              (dy[i] * gamma[i] - g_mean - (x[i] - mean) * inverse * gh_mean);
  }
}

struct Normalised {
  Value h, inverse;  // the normalised rows and 1 / deviation
};

Normalised normalise(Builder& b, Node& n, bool layer) {
  Value x = wide(b, n, 0);
  if (layer) x = b.sub(x, b.mean(x, {-1}, true));
  Value square = b.mean(b.mul(x, x), {-1}, true);
  Value inverse = b.op(Op::Rsqrt, {b.add(square, n.f("eps"))});
  return {b.mul(x, inverse), inverse};
}

template <bool layer>
Values decompose_norm(Builder& b, Node& n) {
  Value y = b.mul(normalise(b, n, layer).h, wide(b, n, 1));
  return {b.cast(layer ? b.add(y, wide(b, n, 2)) : y, n.type().dtype)};
}

template <bool layer>
Values decompose_norm_grad(Builder& b, Node& n) {
  Value gamma = wide(b, n, 1), dy = wide(b, n, 2);
  auto [h, inverse] = normalise(b, n, layer);
  Value g = b.mul(dy, gamma);
  Value rest = b.mul(h, b.mean(b.mul(g, h), {-1}, true));
  Value centred = layer ? b.sub(g, b.mean(g, {-1}, true)) : g;
  Values out = {b.mul(b.sub(centred, rest), inverse),
                b.sum_to(b.mul(dy, h), gamma.type().dims)};
  if (layer) out.push_back(b.sum_to(dy, gamma.type().dims));
  for (Value& v : out) v = b.cast(v, n.type().dtype);
  return out;
}

Values vjp_norm(Builder& b, Node& n, Gradients dy) {
  Op grad = n.op() == Op::LayerNorm ? Op::LayerNormGrad : Op::RmsNormGrad;
  Node* g =
      b.node(grad, {n.operand(0), n.operand(1), dy[0]}, {{"eps", n.f("eps")}});
  Values out;
  for (int i = 0; i < g->num_results(); ++i) out.push_back(g->result(i));
  return out;
}

Cost norm_cost(const Node& n) {
  return io_cost(n, 8.0 * double(n.type().numel()));
}

const AttrDef kAxisAttrs[] = {
    shown(optional("axis", i64(-1), "axis that sums to 1"))};
const AttrDef kEpsAttrs[] = {
    shown(optional("eps", 1e-6, "added to the mean square"))};

}  // namespace

const OpDef kSoftmax = {
    .name = "softmax",
    .summary = "e^x over its sum along an axis.",
    .min_inputs = 1,
    .max_inputs = 1,
    .attrs = kAxisAttrs,
    .operand_names = {"x"},
    .infer = infer_same,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          return Values{b.op(Op::SoftmaxGrad, {n.result(), dy[0]},
                             {{"axis", n.i("axis")}})};
        },
    .decompose = decompose_softmax,
    .eval = eval_softmax,
    .cost = softmax_cost,
};

const OpDef kSoftmaxGrad = {
    .name = "softmax_grad",
    .summary = "Gradient of softmax from its result: y (dy - sum(y dy)).",
    .min_inputs = 2,
    .max_inputs = 2,
    .attrs = kAxisAttrs,
    .operand_names = {"y", "dy"},
    .infer = infer_same,
    .decompose = decompose_softmax_grad,
    .eval = eval_softmax_grad,
    .cost = softmax_cost,
};

const OpDef kLayerNorm = {
    .name = "layer_norm",
    .summary =
        "(x - mean) / sqrt(variance + eps) gamma + beta, over the last "
        "axis.",
    .min_inputs = 3,
    .max_inputs = 3,
    .attrs = kEpsAttrs,
    .operand_names = {"x", "gamma", "beta"},
    .infer = infer_norm,
    .vjp = vjp_norm,
    .decompose = decompose_norm<true>,
    .eval = eval_norm<true>,
    .cost = norm_cost,
};

const OpDef kLayerNormGrad = {
    .name = "layer_norm_grad",
    .summary = "dx, dgamma and dbeta of layer_norm.",
    .min_inputs = 3,
    .max_inputs = 3,
    .attrs = kEpsAttrs,
    .operand_names = {"x", "gamma", "dy"},
    .infer = infer_norm_grad,
    .decompose = decompose_norm_grad<true>,
    .eval = eval_norm_grad<true>,
    .cost = norm_cost,
};

const OpDef kRmsNorm = {
    .name = "rms_norm",
    .summary = "x / sqrt(mean(x^2) + eps) gamma, over the last axis.",
    .min_inputs = 2,
    .max_inputs = 2,
    .attrs = kEpsAttrs,
    .operand_names = {"x", "gamma"},
    .infer = infer_norm,
    .vjp = vjp_norm,
    .decompose = decompose_norm<false>,
    .eval = eval_norm<false>,
    .cost = norm_cost,
};

const OpDef kRmsNormGrad = {
    .name = "rms_norm_grad",
    .summary = "dx and dgamma of rms_norm.",
    .min_inputs = 3,
    .max_inputs = 3,
    .attrs = kEpsAttrs,
    .operand_names = {"x", "gamma", "dy"},
    .infer = infer_norm_grad,
    .decompose = decompose_norm_grad<false>,
    .eval = eval_norm_grad<false>,
    .cost = norm_cost,
};

}  // namespace moec::ops
