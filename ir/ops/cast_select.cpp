// Elementwise ops whose result is an operand, converted or chosen.
#include <cmath>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

Types infer_cast(const InferArgs& a) {
  return {Type{a.node.dtype("dtype"), a.in[0].dims}};
}

// To an integer: towards zero, saturating, NaN to 0. To bool: x != 0.
void eval_cast(const EvalArgs& a) {
  DType from = a.in[0]->type.dtype, to = a.out[0].type.dtype;
  a.out[0].data = a.in[0]->data;
  if (to == DType::Bool) {
    for (double& x : a.out[0].data) x = x != 0;
  } else if (is_int(to) && is_float(from)) {
    double lo = to == DType::U32 ? 0 : to == DType::I32 ? -0x1p31 : -0x1p63;
    double hi = to == DType::U32   ? 0x1p32 - 1
                : to == DType::I32 ? 0x1p31 - 1
                                   : 0x1p63 - 1024;
    for (double& x : a.out[0].data)
      x = std::isnan(x) ? 0 : std::trunc(std::min(std::max(x, lo), hi));
  }
}

Values vjp_cast(Builder& b, Node& n, Gradients dy) {
  if (!wants_grad(n.operand(0))) return {Value{}};
  return {b.cast(dy[0], n.operand(0).type().dtype)};
}

Types infer_select(const InferArgs& a) {
  expect_dtype(a, 0, DType::Bool);
  expect_dtype_of(a, 2, 1);
  Type ab{a.in[1].dtype, broadcast_dims("select", a.in[1], a.in[2])};
  return {Type{ab.dtype, broadcast_dims("select", a.in[0], ab)}};
}

void eval_select(const EvalArgs& a) {
  const Dims& dims = a.out[0].type.dims;
  double* out = a.out[0].data.data();
  // First b everywhere, then a where the predicate holds.
  for (int source : {2, 1}) {
    Dims s = broadcast_strides(a.in[source]->type, dims);
    Dims sp = broadcast_strides(a.in[0]->type, dims);
    i64 step = dims.empty() ? 0 : s.back(), ps = dims.empty() ? 0 : sp.back();
    std::vector<i64> rows;
    for_each_row(dims, sp, [&](i64, i64 in, i64) { rows.push_back(in); });
    size_t row = 0;
    for_each_row(dims, s, [&](i64 o, i64 in, i64 run) {
      const double* x = a.in[source]->data.data() + in;
      const double* p = a.in[0]->data.data() + rows[row++];
      for (i64 i = 0; i < run; ++i)
        if (source == 2 || p[i * ps] != 0) out[o + i] = x[i * step];
    });
  }
}

Values vjp_select(Builder& b, Node& n, Gradients dy) {
  Value p = n.operand(0), zero = b.scalar(0, dy[0].type().dtype);
  Values g(3);
  if (wants_grad(n.operand(1)))
    g[1] = b.sum_to(b.select(p, dy[0], zero), n.operand(1).type().dims);
  if (wants_grad(n.operand(2)))
    g[2] = b.sum_to(b.select(p, zero, dy[0]), n.operand(2).type().dims);
  return g;
}

const AttrDef kCastAttrs[] = {
    required("dtype", AttrKind::DType, "element type of the result")};

}  // namespace

const OpDef kCast = {
    .name = "cast",
    .summary =
        "Converts the element type: to nearest even; to an integer "
        "towards zero, saturating, NaN to 0; to bool x != 0.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kElementwise,
    .attrs = kCastAttrs,
    .operand_names = {"x"},
    .infer = infer_cast,
    .vjp = vjp_cast,
    .eval = eval_cast,
};

const OpDef kSelect = {
    .name = "select",
    .summary = "a where pred holds, else b.",
    .min_inputs = 3,
    .max_inputs = 3,
    .traits = kElementwise,
    .operand_names = {"pred", "a", "b"},
    .infer = infer_select,
    .vjp = vjp_select,
    .eval = eval_select,
};

}  // namespace moec::ops
