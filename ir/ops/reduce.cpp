// Reductions over axes, by value and by segment.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

// One flag per axis of x: is it reduced?
absl::InlinedVector<bool, 6> reduced_axes(const Node& n, const Type& x) {
  absl::InlinedVector<bool, 6> flags(x.dims.size(), false);
  for (i64 axis : n.ints("axes")) {
    i64 at = axis < 0 ? axis + x.rank() : axis;
    if (at < 0 || at >= x.rank())
      user_error("{}: axes={} names axis {}, which {} does not have",
                 op_name(n.op()), to_string(AttrValue(n.ints("axes"))), axis,
                 to_string(x));
    if (flags[at])
      user_error("{}: axes={} names axis {} twice", op_name(n.op()),
                 to_string(AttrValue(n.ints("axes"))), axis);
    flags[at] = true;
  }
  return flags;
}

Dims kept_dims(const Node& n, const Type& x, bool keepdims) {
  auto reduced = reduced_axes(n, x);
  Dims d;
  for (i64 i = 0; i < x.rank(); ++i) {
    if (!reduced[i]) d.push_back(x.dims[i]);
    if (reduced[i] && keepdims) d.push_back(1);
  }
  return d;
}

i64 reduced_count(const Node& n, const Type& x) {
  auto reduced = reduced_axes(n, x);
  i64 count = 1;
  for (i64 i = 0; i < x.rank(); ++i)
    if (reduced[i]) count *= x.dims[i];
  return count;
}

Types infer_reduce(const InferArgs& a) {
  if (a.in[0].dtype == DType::Bool)
    user_error("{}: {} should hold numbers; cast it", op_of(a), describe(a, 0));
  Op op = a.node.op();
  if (op == Op::Mean) expect_float(a, 0);
  Dims d = kept_dims(a.node, a.in[0], a.node.b("keepdims"));
  if (op != Op::Sum && reduced_count(a.node, a.in[0]) == 0)
    user_error("{}: of no elements: {}", op_of(a), describe(a, 0));
  return {Type{a.in[0].dtype, d}};
}

// Visits every element of x in order: the output index is that of the kept
// axes, f combines.
template <class F>
void reduce(const EvalArgs& a, double start, F f) {
  const Tensor& x = *a.in[0];
  auto& y = a.out[0].data;
  std::fill(y.begin(), y.end(), start);
  Dims strides = row_major_strides(kept_dims(a.node, x.type, true));
  auto reduced = reduced_axes(a.node, x.type);
  for (size_t i = 0; i < strides.size(); ++i)
    if (reduced[i]) strides[i] = 0;
  i64 step = strides.empty() ? 0 : strides.back();
  const double* in = x.data.data();
  for_each_row(x.type.dims, strides, [&](i64 at, i64 o, i64 run) {
    for (i64 i = 0; i < run; ++i)
      y[o + i * step] = f(y[o + i * step], in[at + i]);
  });
}

void eval_sum(const EvalArgs& a) {
  reduce(a, 0, [](double s, double x) { return s + x; });
}

void eval_mean(const EvalArgs& a) {
  eval_sum(a);
  double count = double(reduced_count(a.node, a.in[0]->type));
  for (double& y : a.out[0].data) y /= count;
}

constexpr double kInf = std::numeric_limits<double>::infinity();

void eval_max(const EvalArgs& a) {
  reduce(a, -kInf, [](double s, double x) { return x > s || x != x ? x : s; });
}

void eval_min(const EvalArgs& a) {
  reduce(a, kInf, [](double s, double x) { return x < s || x != x ? x : s; });
}

// The result or its gradient with the reduced axes back, of size 1.
Value restore_axes(Builder& b, Node& n, Value v) {
  return b.reshape(v, kept_dims(n, n.operand(0).type(), true));
}

Values vjp_sum(Builder& b, Node& n, Gradients dy) {
  const Type& x = n.operand(0).type();
  Value g = restore_axes(b, n, dy[0]);
  if (n.op() == Op::Mean) g = b.mul(g, 1.0 / double(reduced_count(n, x)));
  return {b.broadcast(g, x.dims)};
}

// Equal extremes share the gradient.
Values vjp_extreme(Builder& b, Node& n, Gradients dy) {
  Value x = n.operand(0);
  DType t = x.type().dtype;
  if (!is_float(t)) return {Value{}};
  Value hit = b.compare(x, restore_axes(b, n, n.result()), "eq");
  Value count = b.sum(b.cast(hit, t), n.ints("axes"), true);
  Value share = b.div(restore_axes(b, n, dy[0]), count);
  return {b.select(hit, share, b.scalar(0, t))};
}

// ---- argmax, logsumexp -----------------------------------------------------

Types infer_argmax(const InferArgs& a) {
  i64 axis = axis_attr(a);
  if (a.in[0].dims[axis] == 0)
    user_error("argmax: axis {} of {} is empty", axis, to_string(a.in[0]));
  return {Type{DType::I32, without_axis(a.in[0].dims, axis)}};
}

void eval_argmax(const EvalArgs& a) {
  AxisView v(a.in[0]->type, axis_of(a.node));
  const double* x = a.in[0]->data.data();
  double* y = a.out[0].data.data();
  for (i64 o = 0; o < v.outer; ++o)
    for (i64 i = 0; i < v.inner; ++i) {
      const double* p = x + o * v.n * v.inner + i;
      i64 best = 0;
      for (i64 j = 1; j < v.n; ++j)
        if (p[j * v.inner] > p[best * v.inner]) best = j;
      y[o * v.inner + i] = double(best);
    }
}

Types infer_logsumexp(const InferArgs& a) {
  expect_float(a, 0);
  i64 axis = axis_attr(a);
  return {Type{a.in[0].dtype, without_axis(a.in[0].dims, axis)}};
}

void eval_logsumexp(const EvalArgs& a) {
  AxisView v(a.in[0]->type, axis_of(a.node));
  for (i64 o = 0; o < v.outer; ++o)
    for (i64 i = 0; i < v.inner; ++i) {
      const double* p = a.in[0]->data.data() + o * v.n * v.inner + i;
      double top = -kInf, sum = 0;
      for (i64 j = 0; j < v.n; ++j) top = std::max(top, p[j * v.inner]);
      for (i64 j = 0; j < v.n; ++j) sum += std::exp(p[j * v.inner] - top);
      a.out[0].data[o * v.inner + i] = top == -kInf ? top : top + std::log(sum);
    }
}

Values vjp_logsumexp(Builder& b, Node& n, Gradients dy) {
  Value x = n.operand(0);
  Dims kept = x.type().dims;
  kept[axis_of(n)] = 1;
  Value p = b.exp(b.sub(x, b.reshape(n.result(), kept)));
  return {b.mul(p, b.reshape(dy[0], kept))};
}

Values decompose_logsumexp(Builder& b, Node& n) {
  DType t = n.type().dtype;
  Value x = b.cast(n.operand(0), stat_dtype(t));
  i64 axis = axis_of(n);
  Value top = b.reduce_max(x, {axis}, true);
  Value sum = b.sum(b.exp(b.sub(x, top)), {axis});
  return {b.cast(b.add(b.log(sum), b.reshape(top, n.type().dims)), t)};
}

// ---- counts and segments ---------------------------------------------------

Types infer_bincount(const InferArgs& a) {
  expect_int(a, 0);
  if (a.node.i("size") < 0) user_error("bincount: size is negative");
  return {Type{DType::I32, {a.node.i("size")}}};
}

void eval_bincount(const EvalArgs& a) {
  auto& y = a.out[0].data;
  for (double x : a.in[0]->data) {
    if (x < 0) continue;
    if (x >= double(y.size()))
      user_error("bincount: index {} is outside size={}", x, y.size());
    ++y[size_t(x)];
  }
}

Types infer_segment_sum(const InferArgs& a) {
  expect_min_rank(a, 0, 1);
  expect_dtype(a, 1, DType::I32);
  expect_rank(a, 1, 1);
  if (a.in[1].dims[0] < 1)
    user_error("segment_sum: offsets need one entry more than segments");
  Type t = a.in[0];
  t.dims[0] = a.in[1].dims[0] - 1;
  return {t};
}

void eval_segment_sum(const EvalArgs& a) {
  const auto& offsets = a.in[1]->data;
  check_offsets(a, 1, a.in[0]->type.dims[0]);
  i64 inner = AxisView(a.in[0]->type, 0).inner;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    double* y = a.out[0].data.data() + i64(e) * inner;
    for (i64 s = i64(offsets[e]); s < i64(offsets[e + 1]); ++s) {
      const double* x = a.in[0]->data.data() + s * inner;
      for (i64 i = 0; i < inner; ++i) y[i] += x[i];
    }
  }
}

// dx[s] = dy[segment of s]; the segment is the number of ends at or before s,
// and rows past the last end take the zero row that a negative index gathers.
Values vjp_segment_sum(Builder& b, Node& n, Gradients dy) {
  Value offsets = n.operand(1);
  i64 rows = n.operand(0).type().dims[0], segments = n.type().dims[0];
  Value ends = b.slice(offsets, {1}, {segments + 1});
  Value row = b.op(Op::Iota, {}, {{"shape", std::vector<i64>{rows, 1}}});
  Value passed = b.cast(b.compare(ends, row, "le"), DType::I32);
  Value segment = b.sum(passed, {1});
  Value past = b.compare(segment, b.scalar(double(segments), DType::I32), "ge");
  Value index = b.select(past, b.scalar(-1, DType::I32), segment);
  return {b.op(Op::Gather, {dy[0], index}), {}};
}

const AttrDef kReduceAttrs[] = {
    required("axes", AttrKind::Ints, "axes reduced; negative from the end"),
    optional("keepdims", false, "keep the reduced axes with size 1")};
const AttrDef kAxisAttrs[] = {
    shown(optional("axis", i64(-1), "axis reduced, and removed"))};
const AttrDef kBincountAttrs[] = {
    required("size", AttrKind::Int, "number of values")};

using Eval = void (*)(const EvalArgs&);
using Vjp = Values (*)(Builder&, Node&, Gradients);

OpDef reduction(std::string_view name, std::string_view summary, Eval eval,
                Vjp vjp) {
  return {.name = name,
          .summary = summary,
          .min_inputs = 1,
          .max_inputs = 1,
          .attrs = kReduceAttrs,
          .operand_names = {"x"},
          .infer = infer_reduce,
          .vjp = vjp,
          .eval = eval,
          .cost = [](const Node& n) {
            return io_cost(n, double(n.operand(0).type().numel()));
          }};
}

}  // namespace

const OpDef kSum = reduction("sum", "Sum over axes.", eval_sum, vjp_sum);
const OpDef kMean = reduction("mean", "Mean over axes.", eval_mean, vjp_sum);
const OpDef kReduceMax = reduction(
    "reduce_max", "Largest element over axes; equal ones share the gradient.",
    eval_max, vjp_extreme);
const OpDef kReduceMin = reduction(
    "reduce_min", "Smallest element over axes; equal ones share the gradient.",
    eval_min, vjp_extreme);

const OpDef kArgMax = {
    .name = "argmax",
    .summary = "Index of the largest element; of equal ones the lowest.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kNotDifferentiable,
    .attrs = kAxisAttrs,
    .operand_names = {"x"},
    .infer = infer_argmax,
    .eval = eval_argmax,
};

const OpDef kLogSumExp = {
    .name = "logsumexp",
    .summary = "log of the sum of e^x along an axis.",
    .min_inputs = 1,
    .max_inputs = 1,
    .attrs = kAxisAttrs,
    .operand_names = {"x"},
    .infer = infer_logsumexp,
    .vjp = vjp_logsumexp,
    .decompose = decompose_logsumexp,
    .eval = eval_logsumexp,
    .cost =
        [](const Node& n) {
          return io_cost(n, 4 * double(n.operand(0).type().numel()));
        },
};

const OpDef kBincount = {
    .name = "bincount",
    .summary =
        "How often each value of [0, size) occurs; negative ones are "
        "skipped.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kNotDifferentiable,
    .attrs = kBincountAttrs,
    .operand_names = {"idx"},
    .infer = infer_bincount,
    .eval = eval_bincount,
};

const OpDef kSegmentSum = {
    .name = "segment_sum",
    .summary =
        "Sums rows [offsets[e], offsets[e+1]) for each e; offsets "
        "ascend from 0.",
    .min_inputs = 2,
    .max_inputs = 2,
    .operand_names = {"x", "offsets"},
    .infer = infer_segment_sum,
    .vjp = vjp_segment_sum,
    .eval = eval_segment_sum,
    .cost =
        [](const Node& n) {
          return io_cost(n, double(n.operand(0).type().numel()));
        },
};

}  // namespace moec::ops
