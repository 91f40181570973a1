// Rows and elements by index. A negative index reads zeros and writes nothing.
#include <algorithm>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

[[noreturn]] void outside(const EvalArgs& a, double index, i64 size) {
  user_error("{}: index {} is outside [0, {})", op_name(a.node.op()), index,
             size);
}

// ---- rows ------------------------------------------------------------------

Types infer_gather(const InferArgs& a) {
  expect_min_rank(a, 0, 1);
  expect_int(a, 1);
  Type t{a.in[0].dtype, a.in[1].dims};
  t.dims.insert(t.dims.end(), a.in[0].dims.begin() + 1, a.in[0].dims.end());
  return {t};
}

void eval_gather(const EvalArgs& a) {
  AxisView v(a.in[0]->type, 0);
  const auto& index = a.in[1]->data;
  for (size_t i = 0; i < index.size(); ++i) {
    if (index[i] < 0) continue;
    if (index[i] >= double(v.n)) outside(a, index[i], v.n);
    std::copy_n(a.in[0]->data.data() + i64(index[i]) * v.inner, v.inner,
                a.out[0].data.data() + i64(i) * v.inner);
  }
}

Values vjp_gather(Builder& b, Node& n, Gradients dy) {
  return {b.op(Op::ScatterAdd, {n.operand(1), dy[0]},
               {{"rows", n.operand(0).type().dims[0]}}),
          {}};
}

// Only the rows that are named are read.
Cost gather_cost(const Node& n) {
  double index = double(n.operand(1).type().bytes());
  return {0, index + 2 * double(n.type().bytes())};
}

Types infer_scatter_add(const InferArgs& a) {
  expect_int(a, 0);
  i64 rank = a.in[0].rank(), rows = a.node.i("rows");
  const Type& u = a.in[1];
  if (u.rank() < rank ||
      !std::equal(a.in[0].dims.begin(), a.in[0].dims.end(), u.dims.begin()))
    user_error("scatter_add: {} should begin with the shape of {}",
               describe(a, 1), describe(a, 0));
  if (rows < 0) user_error("scatter_add: rows={} is negative", rows);
  Type t{u.dtype, {rows}};
  t.dims.insert(t.dims.end(), u.dims.begin() + rank, u.dims.end());
  return {t};
}

void eval_scatter_add(const EvalArgs& a) {
  AxisView v(a.out[0].type, 0);
  const auto& index = a.in[0]->data;
  for (size_t i = 0; i < index.size(); ++i) {
    if (index[i] < 0) continue;
    if (index[i] >= double(v.n)) outside(a, index[i], v.n);
    const double* x = a.in[1]->data.data() + i64(i) * v.inner;
    double* y = a.out[0].data.data() + i64(index[i]) * v.inner;
    for (i64 j = 0; j < v.inner; ++j) y[j] += x[j];
  }
}

// ---- elements along the last axis ------------------------------------------

Types infer_take_along(const InferArgs& a) {
  expect_min_rank(a, 0, 1);
  expect_min_rank(a, 1, 1);
  expect_int(a, 1);
  if (leading(a.in[0], 1) != leading(a.in[1], 1))
    user_error("take_along: {} and {} should differ in the last axis only",
               describe(a, 0), describe(a, 1));
  return {Type{a.in[0].dtype, a.in[1].dims}};
}

void eval_take_along(const EvalArgs& a) {
  i64 n = a.in[0]->type.dim(-1), k = a.in[1]->type.dim(-1);
  const auto& index = a.in[1]->data;
  for (i64 i = 0; i < i64(index.size()); ++i) {
    if (index[i] < 0) continue;
    if (index[i] >= double(n)) outside(a, index[i], n);
    a.out[0].data[i] = a.in[0]->data[i / k * n + i64(index[i])];
  }
}

Types infer_put_along(const InferArgs& a) {
  expect_min_rank(a, 0, 1);
  expect_int(a, 0);
  expect_dims(a, 1, a.in[0].dims);
  if (a.node.i("size") < 0) user_error("put_along: size is negative");
  Type t = a.in[1];
  t.dims.back() = a.node.i("size");
  return {t};
}

void eval_put_along(const EvalArgs& a) {
  i64 k = a.in[0]->type.dim(-1), n = a.node.i("size");
  const auto& index = a.in[0]->data;
  for (i64 i = 0; i < i64(index.size()); ++i) {
    if (index[i] < 0) continue;
    if (index[i] >= double(n)) outside(a, index[i], n);
    a.out[0].data[i / k * n + i64(index[i])] += a.in[1]->data[i];
  }
}

Types infer_one_hot(const InferArgs& a) {
  expect_int(a, 0);
  if (a.node.i("size") < 0) user_error("one_hot: size is negative");
  Type t{a.node.dtype("dtype"), a.in[0].dims};
  t.dims.push_back(a.node.i("size"));
  return {t};
}

void eval_one_hot(const EvalArgs& a) {
  i64 n = a.node.i("size");
  const auto& index = a.in[0]->data;
  for (i64 i = 0; i < i64(index.size()); ++i) {
    if (index[i] < 0) continue;
    if (index[i] >= double(n)) outside(a, index[i], n);
    a.out[0].data[i * n + i64(index[i])] = 1;
  }
}

// one_hot = (ids == iota along the new axis)
Values decompose_one_hot(Builder& b, Node& n) {
  Value ids = n.operand(0);
  i64 size = n.i("size");
  Dims column = ids.type().dims;
  column.push_back(1);
  Value classes =
      b.op(Op::Iota, {},
           {{"dtype", ids.type().dtype}, {"shape", std::vector<i64>{size}}});
  Value hit = b.compare(b.reshape(ids, column), classes, "eq");
  return {b.cast(hit, n.dtype("dtype"))};
}

const AttrDef kScatterAttrs[] = {
    required("rows", AttrKind::Int, "rows of the result")};
const AttrDef kPutAttrs[] = {
    required("size", AttrKind::Int, "last dimension of the result")};
const AttrDef kOneHotAttrs[] = {
    required("size", AttrKind::Int, "number of classes"),
    optional("dtype", DType::F32, "element type")};

}  // namespace

const OpDef kGather = {
    .name = "gather",
    .summary =
        "Row idx of the table for each index; zeros where it is "
        "negative.",
    .min_inputs = 2,
    .max_inputs = 2,
    .traits = kDataMovement,
    .operand_names = {"table", "idx"},
    .infer = infer_gather,
    .vjp = vjp_gather,
    .eval = eval_gather,
    .cost = gather_cost,
};

const OpDef kScatterAdd = {
    .name = "scatter_add",
    .summary =
        "Sums each update into row idx, in the order of the indices; "
        "negative ones are skipped.",
    .min_inputs = 2,
    .max_inputs = 2,
    .attrs = kScatterAttrs,
    .operand_names = {"idx", "updates"},
    .infer = infer_scatter_add,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          return Values{{}, b.op(Op::Gather, {dy[0], n.operand(0)})};
        },
    .eval = eval_scatter_add,
    .cost =
        [](const Node& n) {
          return io_cost(n, double(n.operand(1).type().numel()));
        },
};

const OpDef kEmbedding = {
    .name = "embedding",
    .summary =
        "Row ids of the table [V,D] for each id; zeros where it is "
        "negative.",
    .min_inputs = 2,
    .max_inputs = 2,
    .traits = kDataMovement,
    .operand_names = {"table", "ids"},
    .infer =
        [](const InferArgs& a) {
          expect_rank(a, 0, 2);
          return infer_gather(a);
        },
    .vjp = vjp_gather,
    .decompose =
        [](Builder& b, Node& n) {
          return Values{b.op(Op::Gather, {n.operand(0), n.operand(1)})};
        },
    .eval = eval_gather,
    .cost = gather_cost,
};

const OpDef kTakeAlong = {
    .name = "take_along",
    .summary =
        "x[..., idx[..., j]] along the last axis; 0 where idx is "
        "negative.",
    .min_inputs = 2,
    .max_inputs = 2,
    .traits = kDataMovement,
    .operand_names = {"x", "idx"},
    .infer = infer_take_along,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          return Values{b.op(Op::PutAlong, {n.operand(1), dy[0]},
                             {{"size", n.operand(0).type().dim(-1)}}),
                        {}};
        },
    .eval = eval_take_along,
};

const OpDef kPutAlong = {
    .name = "put_along",
    .summary =
        "Zeros with v[..., j] added at idx[..., j] of the last axis; "
        "negative indices are skipped.",
    .min_inputs = 2,
    .max_inputs = 2,
    .attrs = kPutAttrs,
    .operand_names = {"idx", "v"},
    .infer = infer_put_along,
    .vjp =
        [](Builder& b, Node& n, Gradients dy) {
          return Values{{}, b.op(Op::TakeAlong, {dy[0], n.operand(0)})};
        },
    .eval = eval_put_along,
};

const OpDef kOneHot = {
    .name = "one_hot",
    .summary =
        "1 at position id of a new last axis, 0 elsewhere; a negative "
        "id gives zeros.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kNotDifferentiable,
    .attrs = kOneHotAttrs,
    .operand_names = {"ids"},
    .infer = infer_one_hot,
    .decompose = decompose_one_hot,
    .eval = eval_one_hot,
};

}  // namespace moec::ops
