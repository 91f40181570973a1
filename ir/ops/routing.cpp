// Which tokens go to which expert, and in which order.
#include <algorithm>
#include <numeric>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

Types infer_top_k(const InferArgs& a) {
  expect_float(a, 0);
  expect_min_rank(a, 0, 1);
  i64 k = a.node.i("k");
  if (k < 1 || k > a.in[0].dim(-1))
    user_error("top_k: k={} should be between 1 and the last dimension of {}",
               k, to_string(a.in[0]));
  Type t = a.in[0];
  t.dims.back() = k;
  return {t, Type{DType::I32, t.dims}};
}

void eval_top_k(const EvalArgs& a) {
  i64 n = a.in[0]->type.dim(-1), k = a.node.i("k");
  std::vector<i64> order(static_cast<size_t>(n));
  const double* x = a.in[0]->data.data();
  double *values = a.out[0].data.data(), *indices = a.out[1].data.data();
  for (i64 r = a.out[0].type.numel() / k; r > 0; --r, x += n) {
    std::iota(order.begin(), order.end(), i64(0));
    std::partial_sort(
        order.begin(), order.begin() + k, order.end(),
        [&](i64 i, i64 j) { return x[i] != x[j] ? x[i] > x[j] : i < j; });
    for (i64 j = 0; j < k; ++j) {
      *values++ = x[order[j]];
      *indices++ = double(order[j]);
    }
  }
}

Values vjp_top_k(Builder& b, Node& n, Gradients dy) {
  if (!dy[0]) return {Value{}};
  return {b.op(Op::PutAlong, {n.result(1), dy[0]},
               {{"size", n.operand(0).type().dim(-1)}})};
}

void expect_choices(const InferArgs& a) {
  expect_dtype(a, 0, DType::I32);
  expect_rank(a, 0, 2);
  i64 experts = a.node.i("experts");
  if (experts < 1 || experts > (i64(1) << 20))
    user_error("{}: experts={} should be positive and at most a million",
               op_of(a), experts);
}

// The expert of a choice, or -1.
i64 expert_of(const EvalArgs& a, size_t choice) {
  double e = a.in[0]->data[choice];
  i64 experts = a.node.i("experts");
  if (e >= double(experts))
    user_error("{}: index {} is outside experts={}", op_name(a.node.op()), e,
               experts);
  return e < 0 ? -1 : i64(e);
}

Types infer_capacity_keep(const InferArgs& a) {
  expect_choices(a);
  i64 rows = a.node.i("rows");
  if (a.node.i("capacity") < 0)
    user_error("capacity_keep: capacity is negative");
  if (rows < 1 || a.in[0].dims[0] % rows != 0)
    user_error("capacity_keep: rows={} does not divide the tokens of {}", rows,
               describe(a, 0));
  const std::string& scope = a.node.s("scope");
  if (scope != "row" && scope != "batch")
    user_error("capacity_keep: scope \"{}\" is neither \"row\" nor \"batch\"",
               scope);
  return {Type{DType::Bool, a.in[0].dims}};
}

// Positions go first: a slot is never lost to a later token of any row.
void eval_capacity_keep(const EvalArgs& a) {
  i64 rows = a.node.i("rows"), experts = a.node.i("experts");
  i64 positions = a.in[0]->type.dims[0] / rows, k = a.in[0]->type.dims[1];
  bool by_row = a.node.s("scope") == "row";
  std::vector<i64> used(size_t((by_row ? rows : 1) * experts));
  for (i64 t = 0; t < positions; ++t)
    for (i64 r = 0; r < rows; ++r)
      for (i64 j = 0; j < k; ++j) {
        auto choice = size_t((r * positions + t) * k + j);
        i64 e = expert_of(a, choice);
        if (e < 0) continue;
        i64& slots = used[(by_row ? r : 0) * experts + e];
        if (slots == a.node.i("capacity")) continue;
        ++slots;
        a.out[0].data[choice] = 1;
      }
}

Types infer_route(const InferArgs& a) {
  expect_choices(a);
  if (a.in.size() > 1) {
    expect_dtype(a, 1, DType::Bool);
    expect_dims(a, 1, a.in[0].dims);
  }
  Type flat{DType::I32, {a.in[0].numel()}};
  return {Type{DType::I32, {a.node.i("experts") + 1}}, flat, flat};
}

void eval_route(const EvalArgs& a) {
  auto &offsets = a.out[0].data, &perm = a.out[1].data, &inv = a.out[2].data;
  std::vector<i64> expert(inv.size());
  for (size_t c = 0; c < inv.size(); ++c) {
    bool kept = a.in.size() < 2 || a.in[1]->data[c] != 0;
    expert[c] = kept ? expert_of(a, c) : -1;
    if (expert[c] >= 0) ++offsets[expert[c] + 1];
  }
  for (size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
  std::fill(perm.begin(), perm.end(), -1.0);
  std::vector<double> next(offsets.begin(), offsets.end() - 1);
  for (size_t c = 0; c < inv.size(); ++c) {
    inv[c] = expert[c] < 0 ? -1 : next[expert[c]]++;
    if (inv[c] >= 0) perm[size_t(inv[c])] = double(c);
  }
}

const AttrDef kTopKAttrs[] = {
    required("k", AttrKind::Int, "how many of the last axis")};
const AttrDef kCapacityAttrs[] = {
    required("experts", AttrKind::Int, "number of experts"),
    required("capacity", AttrKind::Int, "slots of each expert"),
    optional("rows", i64(1), "sequences in the batch; N = rows * positions"),
    optional("scope", std::string("row"),
             "\"row\": slots for each row; \"batch\": shared by all rows")};
const AttrDef kRouteAttrs[] = {
    required("experts", AttrKind::Int, "number of experts")};

}  // namespace

const OpDef kTopK = {
    .name = "top_k",
    .summary =
        "The k largest of the last axis, descending, and their "
        "indices; of equal ones the lowest index first.",
    .min_inputs = 1,
    .max_inputs = 1,
    .attrs = kTopKAttrs,
    .operand_names = {"x"},
    .infer = infer_top_k,
    .vjp = vjp_top_k,
    .eval = eval_top_k,
};

const OpDef kCapacityKeep = {
    .name = "capacity_keep",
    .summary =
        "Which choices idx[N,k] get a slot of their expert; slots go in "
        "the order of position, row, choice.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kNotDifferentiable,
    .attrs = kCapacityAttrs,
    .operand_names = {"idx"},
    .infer = infer_capacity_keep,
    .eval = eval_capacity_keep,
};

const OpDef kRoute = {
    .name = "route",
    .summary =
        "Sorts the choices idx[N,k] by expert, stably, without those "
        "not kept: offsets[E+1], perm (slot to flat choice n k + j, -1 "
        "past the last) and inv (flat choice to slot, -1 if dropped).",
    .min_inputs = 1,
    .max_inputs = 2,
    .traits = kNotDifferentiable,
    .attrs = kRouteAttrs,
    .operand_names = {"idx", "keep"},
    .infer = infer_route,
    .eval = eval_route,
};

}  // namespace moec::ops
