// Ops that move elements and compute nothing.
#include <algorithm>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

// Copies with `strides` (in elements of the input) from `base`.
void strided_copy(const Tensor& x, i64 base, const Dims& strides, Tensor& y) {
  const double* from = x.data.data() + base;
  double* to = y.data.data();
  i64 step = strides.empty() ? 1 : strides.back();
  for_each_row(y.type.dims, strides, [&](i64 o, i64 in, i64 run) {
    for (i64 i = 0; i < run; ++i) to[o + i] = from[in + i * step];
  });
}

// The inverse: writes x into y at `base` with y's own strides.
void place(const Tensor& x, i64 base, Tensor& y) {
  Dims strides = row_major_strides(y.type.dims);
  double* to = y.data.data() + base;
  for_each_row(x.type.dims, strides, [&](i64 in, i64 o, i64 run) {
    std::copy_n(x.data.data() + in, run, to + o);
  });
}

// ---- broadcast, reshape, transpose -----------------------------------------

Types infer_broadcast(const InferArgs& a) {
  Type out{a.in[0].dtype, dims_attr(a)};
  if (out.rank() < a.in[0].rank() ||
      broadcast_dims("broadcast", a.in[0], out) != out.dims)
    user_error("broadcast: {} does not broadcast to {}", to_string(a.in[0]),
               to_string(out));
  return {out};
}

void eval_broadcast(const EvalArgs& a) {
  strided_copy(*a.in[0], 0,
               broadcast_strides(a.in[0]->type, a.out[0].type.dims), a.out[0]);
}

Types infer_reshape(const InferArgs& a) {
  Type out{a.in[0].dtype, dims_attr(a)};
  if (out.numel() != a.in[0].numel())
    user_error("reshape: {} has {} elements, the shape of {} {}",
               to_string(a.in[0]), a.in[0].numel(), to_string(out),
               out.numel());
  return {out};
}

Types infer_transpose(const InferArgs& a) {
  const auto& perm = a.node.ints("perm");
  i64 rank = a.in[0].rank();
  std::vector<i64> sorted = perm;
  std::sort(sorted.begin(), sorted.end());
  bool ok = i64(perm.size()) == rank;
  for (i64 i = 0; ok && i < rank; ++i) ok = sorted[i] == i;
  if (!ok)
    user_error("transpose: perm={} is not an order of the {} axes of {}",
               to_string(AttrValue(perm)), rank, to_string(a.in[0]));
  Type t{a.in[0].dtype, {}};
  for (i64 p : perm) t.dims.push_back(a.in[0].dims[p]);
  return {t};
}

void eval_transpose(const EvalArgs& a) {
  Dims own = row_major_strides(a.in[0]->type.dims), s;
  for (i64 p : a.node.ints("perm")) s.push_back(own[p]);
  strided_copy(*a.in[0], 0, s, a.out[0]);
}

Values vjp_transpose(Builder& b, Node& n, Gradients dy) {
  const auto& perm = n.ints("perm");
  std::vector<i64> inverse(perm.size());
  for (size_t i = 0; i < perm.size(); ++i) inverse[perm[i]] = i64(i);
  return {b.transpose(dy[0], inverse)};
}

// ---- slice, pad, concat ----------------------------------------------------

std::vector<i64> strides_of(const Node& n, i64 rank) {
  std::vector<i64> s = n.ints("stride");
  if (s.empty()) s.assign(size_t(rank), 1);
  return s;
}

Types infer_slice(const InferArgs& a) {
  const Type& x = a.in[0];
  const auto &start = a.node.ints("start"), &limit = a.node.ints("limit");
  auto stride = strides_of(a.node, x.rank());
  for (auto* v : {&start, &limit, const_cast<const std::vector<i64>*>(&stride)})
    if (i64(v->size()) != x.rank())
      user_error(
          "slice: start, limit and stride need one entry for each axis "
          "of {}",
          to_string(x));
  Type t = x;
  for (i64 i = 0; i < x.rank(); ++i) {
    if (start[i] < 0 || start[i] > limit[i] || limit[i] > x.dims[i])
      user_error("slice: [{}, {}) is not within axis {} of {}", start[i],
                 limit[i], i, to_string(x));
    if (stride[i] < 1)
      user_error("slice: stride {} of axis {} should be positive", stride[i],
                 i);
    i64 length = limit[i] - start[i];
    t.dims[i] = length == 0 ? 0 : (length - 1) / stride[i] + 1;
  }
  return {t};
}

void eval_slice(const EvalArgs& a) {
  const Tensor& x = *a.in[0];
  auto stride = strides_of(a.node, x.type.rank());
  Dims own = row_major_strides(x.type.dims);
  i64 base = 0;
  for (size_t i = 0; i < own.size(); ++i) {
    base += own[i] * a.node.ints("start")[i];
    own[i] *= stride[i];
  }
  strided_copy(x, base, own, a.out[0]);
}

Value pad_with_zeros(Builder& b, Value x, std::vector<i64> low,
                     std::vector<i64> high) {
  auto none = [](const auto& v) {
    return std::all_of(v.begin(), v.end(), [](i64 i) { return i == 0; });
  };
  if (none(low) && none(high)) return x;
  return b.op(Op::Pad, {x},
              {{"low", std::move(low)}, {"high", std::move(high)}});
}

// Strided axes are first spread out: [n] -> [n, 1] -> [n, s] -> [n s].
Value spread(Builder& b, Value dy, const std::vector<i64>& stride) {
  Dims apart, together;
  std::vector<i64> high;
  for (i64 i = 0; i < dy.type().rank(); ++i) {
    i64 n = dy.type().dims[i];
    apart.insert(apart.end(), {n, 1});
    together.push_back(n * stride[i]);
    high.insert(high.end(), {0, stride[i] - 1});
  }
  if (together == dy.type().dims) return dy;
  Value x = b.reshape(dy, apart);
  x = pad_with_zeros(b, x, std::vector<i64>(high.size(), 0), high);
  return b.reshape(x, together);
}

Values vjp_slice(Builder& b, Node& n, Gradients dy) {
  const Type& x = n.operand(0).type();
  std::vector<i64> start = n.ints("start"), high, limit;
  std::vector<i64> stride = strides_of(n, x.rank());
  for (i64 i = 0; i < x.rank(); ++i)  // a longer step also gives one element
    stride[i] = std::min(stride[i], std::max<i64>(x.dims[i], 1));
  Value g = spread(b, dy[0], stride);
  for (i64 i = 0; i < x.rank(); ++i) {
    limit.push_back(std::min(g.type().dims[i], x.dims[i] - start[i]));
    high.push_back(x.dims[i] - start[i] - limit.back());
  }
  g = b.slice(g, std::vector<i64>(limit.size(), 0), limit);
  return {pad_with_zeros(b, g, start, high)};
}

Types infer_pad(const InferArgs& a) {
  const auto &low = a.node.ints("low"), &high = a.node.ints("high");
  Type t = a.in[0];
  if (i64(low.size()) != t.rank() || i64(high.size()) != t.rank())
    user_error("pad: low and high need one entry for each axis of {}",
               to_string(t));
  for (i64 i = 0; i < t.rank(); ++i) {
    if (low[i] < 0 || high[i] < 0 || low[i] > (i64(1) << 40) ||
        high[i] > (i64(1) << 40))
      user_error("pad: {} and {} are no amounts to pad axis {} by", low[i],
                 high[i], i);
    t.dims[i] += low[i] + high[i];
  }
  return {t};
}

void eval_pad(const EvalArgs& a) {
  Tensor& y = a.out[0];
  std::fill(y.data.begin(), y.data.end(), a.node.f("value"));
  Dims strides = row_major_strides(y.type.dims);
  i64 base = 0;
  for (size_t i = 0; i < strides.size(); ++i)
    base += strides[i] * a.node.ints("low")[i];
  place(*a.in[0], base, y);
}

Values vjp_pad(Builder& b, Node& n, Gradients dy) {
  std::vector<i64> start = n.ints("low"), limit = start;
  for (size_t i = 0; i < limit.size(); ++i)
    limit[i] += n.operand(0).type().dims[i];
  return {b.slice(dy[0], start, limit)};
}

Types infer_concat(const InferArgs& a) {
  i64 axis = axis_attr(a);
  Type t = a.in[0];
  for (size_t i = 1; i < a.in.size(); ++i) {
    expect_dtype_of(a, int(i), 0);
    Type u = a.in[i];
    if (u.rank() == t.rank()) u.dims[axis] = t.dims[axis];
    if (u != t)
      user_error(
          "concat: operand {} {} does not fit operand 0 {} along axis "
          "{}",
          i, to_string(a.in[i]), to_string(a.in[0]), axis);
  }
  for (size_t i = 1; i < a.in.size(); ++i) t.dims[axis] += a.in[i].dims[axis];
  return {t};
}

void eval_concat(const EvalArgs& a) {
  i64 axis = axis_of(a.node), offset = 0;
  i64 inner = AxisView(a.out[0].type, axis).inner;
  for (const Tensor* x : a.in) {
    place(*x, offset * inner, a.out[0]);
    offset += x->type.dims[axis];
  }
}

Values vjp_concat(Builder& b, Node& n, Gradients dy) {
  i64 axis = axis_of(n);
  std::vector<i64> start(dy[0].type().dims.size(), 0);
  std::vector<i64> limit = to_ints(dy[0].type().dims);
  Values g;
  for (Value x : n.operands()) {
    limit[axis] = start[axis] + x.type().dims[axis];
    g.push_back(b.slice(dy[0], start, limit));
    start[axis] = limit[axis];
  }
  return g;
}

// ---- dynamic slices --------------------------------------------------------

void expect_start(const InferArgs& a, int i) {
  expect_dtype(a, i, DType::I32);
  expect_rank(a, i, 0);
}

Types infer_dynamic_slice(const InferArgs& a) {
  i64 axis = axis_attr(a), size = a.node.i("size");
  expect_start(a, 1);
  if (size < 0 || size > a.in[0].dims[axis])
    user_error("dynamic_slice: size={} does not fit axis {} of {}", size, axis,
               to_string(a.in[0]));
  Type t = a.in[0];
  t.dims[axis] = size;
  return {t};
}

Types infer_dynamic_update_slice(const InferArgs& a) {
  i64 axis = axis_attr(a);
  expect_dtype_of(a, 1, 0);
  if (a.in[2].rank() == 1 && axis > 0) {
    expect_dtype(a, 2, DType::I32);
    expect_dims(a, 2, {a.in[0].dims[0]});
  } else {
    expect_start(a, 2);
  }
  Type u = a.in[1];
  if (u.rank() == a.in[0].rank() && u.dims[axis] <= a.in[0].dims[axis])
    u.dims[axis] = a.in[0].dims[axis];
  if (u != a.in[0])
    user_error(
        "dynamic_update_slice: update {} does not fit x {} along axis "
        "{}",
        to_string(a.in[1]), to_string(a.in[0]), axis);
  return {a.in[0]};
}

// Where the slice begins in the data of x.
i64 clamped_offset(const Tensor& x, i64 axis, i64 size, const Tensor& start) {
  i64 s = std::clamp<i64>(i64(start.data[0]), 0, x.type.dims[axis] - size);
  return s * AxisView(x.type, axis).inner;
}

void eval_dynamic_slice(const EvalArgs& a) {
  i64 axis = axis_of(a.node);
  strided_copy(*a.in[0],
               clamped_offset(*a.in[0], axis, a.node.i("size"), *a.in[1]),
               row_major_strides(a.in[0]->type.dims), a.out[0]);
}

void eval_dynamic_update_slice(const EvalArgs& a) {
  i64 axis = axis_of(a.node);
  const Tensor &x = *a.in[0], &update = *a.in[1], &start = *a.in[2];
  a.out[0].data = x.data;
  i64 size = update.type.dims[axis];
  if (start.type.rank() == 0)
    return place(update, clamped_offset(x, axis, size, start), a.out[0]);
  // each row by itself
  i64 rows = x.type.dims[0], per_row = update.type.numel() / rows;
  AxisView v(x.type, axis);
  i64 outer = v.outer / rows, run = size * v.inner;
  for (i64 r = 0; r < rows; ++r) {
    i64 at = std::clamp<i64>(i64(start.data[r]), 0, v.n - size);
    for (i64 o = 0; o < outer; ++o)
      std::copy_n(
          update.data.data() + r * per_row + o * run, run,
          a.out[0].data.data() + ((r * outer + o) * v.n + at) * v.inner);
  }
}

Value update_slice(Builder& b, Value x, Value update, Value start, i64 axis) {
  return b.op(Op::DynamicUpdateSlice, {x, update, start}, {{"axis", axis}});
}

const AttrDef kShapeAttrs[] = {
    required("shape", AttrKind::Ints, "dimensions of the result")};
const AttrDef kTransposeAttrs[] = {
    required("perm", AttrKind::Ints, "axis of x for each axis of the result")};
const AttrDef kSliceAttrs[] = {
    required("start", AttrKind::Ints, "first index, per axis"),
    required("limit", AttrKind::Ints, "index past the last, per axis"),
    optional("stride", std::vector<i64>{}, "step, per axis; [] is all ones")};
const AttrDef kConcatAttrs[] = {
    required("axis", AttrKind::Int, "the axis they are joined along")};
const AttrDef kPadAttrs[] = {
    required("low", AttrKind::Ints, "elements before, per axis"),
    required("high", AttrKind::Ints, "elements after, per axis"),
    optional("value", 0.0, "value of the new elements")};
const AttrDef kDynamicSliceAttrs[] = {
    required("axis", AttrKind::Int, "the axis sliced"),
    required("size", AttrKind::Int, "length of the slice")};
const AttrDef kDynamicUpdateAttrs[] = {
    required("axis", AttrKind::Int, "the axis along which it is placed")};

Values vjp_reshape(Builder& b, Node& n, Gradients dy) {
  return {b.reshape(dy[0], n.operand(0).type().dims)};
}

}  // namespace

const OpDef kBroadcast = {
    .name = "broadcast",
    .summary = "Repeats x along new leading axes and axes of size 1.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kDataMovement,
    .attrs = kShapeAttrs,
    .operand_names = {"x"},
    .infer = infer_broadcast,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          return Values{b.sum_to(dy[0], n.operand(0).type().dims)};
        },
    .eval = eval_broadcast,
};

const OpDef kReshape = {
    .name = "reshape",
    .summary = "The same elements in row-major order under another shape.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kDataMovement,
    .attrs = kShapeAttrs,
    .operand_names = {"x"},
    .infer = infer_reshape,
    .vjp = vjp_reshape,
    .eval = [](const EvalArgs& a) { a.out[0].data = a.in[0]->data; },
};

const OpDef kTranspose = {
    .name = "transpose",
    .summary = "Axis i of the result is axis perm[i] of x.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kDataMovement,
    .attrs = kTransposeAttrs,
    .operand_names = {"x"},
    .infer = infer_transpose,
    .vjp = vjp_transpose,
    .eval = eval_transpose,
};

const OpDef kSlice = {
    .name = "slice",
    .summary = "Elements start, start + stride, ... below limit of each axis.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kDataMovement,
    .attrs = kSliceAttrs,
    .operand_names = {"x"},
    .infer = infer_slice,
    .vjp = vjp_slice,
    .eval = eval_slice,
};

const OpDef kConcat = {
    .name = "concat",
    .summary = "Joins tensors along an axis.",
    .min_inputs = 1,
    .max_inputs = -1,
    .traits = kDataMovement,
    .attrs = kConcatAttrs,
    .infer = infer_concat,
    .vjp = vjp_concat,
    .eval = eval_concat,
};

const OpDef kPad = {
    .name = "pad",
    .summary = "Adds elements of one value around x.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kDataMovement,
    .attrs = kPadAttrs,
    .operand_names = {"x"},
    .infer = infer_pad,
    .vjp = vjp_pad,
    .eval = eval_pad,
};

const OpDef kDynamicSlice = {
    .name = "dynamic_slice",
    .summary =
        "`size` elements of an axis from start, which is clamped so "
        "that they fit.",
    .min_inputs = 2,
    .max_inputs = 2,
    .traits = kDataMovement,
    .attrs = kDynamicSliceAttrs,
    .operand_names = {"x", "start"},
    .infer = infer_dynamic_slice,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          return Values{update_slice(b, b.zeros_like(n.operand(0)), dy[0],
                                     n.operand(1), axis_of(n)),
                        {}};
        },
    .eval = eval_dynamic_slice,
};

const OpDef kDynamicUpdateSlice = {
    .name = "dynamic_update_slice",
    .summary =
        "x with the slice from start, which is clamped so that it "
        "fits, replaced by update; start is i32[], or i32[B] with one for "
        "each row of the first axis.",
    .min_inputs = 3,
    .max_inputs = 3,
    .traits = kDataMovement,
    .attrs = kDynamicUpdateAttrs,
    .operand_names = {"x", "update", "start"},
    .infer = infer_dynamic_update_slice,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          Value update = n.operand(1), start = n.operand(2);
          i64 axis = axis_of(n);
          if (start.type().rank() > 0)
            user_error(
                "dynamic_update_slice: has no gradient for starts by row");
          return Values{
              update_slice(b, dy[0], b.zeros_like(update), start, axis),
              b.op(Op::DynamicSlice, {dy[0], start},
                   {{"axis", axis}, {"size", update.type().dims[axis]}}),
              {}};
        },
    .eval = eval_dynamic_update_slice,
};

}  // namespace moec::ops
