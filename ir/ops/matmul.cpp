// Matrix products: plain, batched and grouped by expert.
#include <algorithm>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

// c[m,n] += scale a[m,k] b[k,n], where a and b may be stored transposed. In
// double, in the order of k for every element.
void gemm(i64 m, i64 n, i64 k, const double* a, bool ta, const double* b,
          bool tb, double scale, double* c) {
  std::vector<double> bt;
  if (tb) {  // rows of b are made contiguous in n
    bt.resize(size_t(k * n));
    for (i64 j = 0; j < n; ++j)
      for (i64 p = 0; p < k; ++p) bt[p * n + j] = b[j * k + p];
    b = bt.data();
  }
  i64 row = ta ? 1 : k, step = ta ? m : 1;
  for (i64 i = 0; i < m; i += 4) {
    i64 rows = std::min<i64>(4, m - i);
    for (i64 p = 0; p < k; ++p) {
      const double* bp = b + p * n;
      double f[4] = {0, 0, 0, 0};
      for (i64 r = 0; r < rows; ++r) f[r] = scale * a[(i + r) * row + p * step];
      if (rows == 4) {
        double *c0 = c + i * n, *c1 = c0 + n, *c2 = c1 + n, *c3 = c2 + n;
        for (i64 j = 0; j < n; ++j) {
          double x = bp[j];
          c0[j] += f[0] * x;
          c1[j] += f[1] * x;
          c2[j] += f[2] * x;
          c3[j] += f[3] * x;
        }
      } else {
        for (i64 r = 0; r < rows; ++r)
          for (i64 j = 0; j < n; ++j) c[(i + r) * n + j] += f[r] * bp[j];
      }
    }
  }
}

// ---- matmul ----------------------------------------------------------------

struct MatmulShape {
  i64 m, n, k, k_of_b;
  Dims batch;  // of the result
};

MatmulShape shape_of(const Node& node, const Type& a, const Type& b) {
  bool ta = node.b("transpose_a"), tb = node.b("transpose_b");
  MatmulShape s{a.dim(ta ? -1 : -2),
                b.dim(tb ? -2 : -1),
                a.dim(ta ? -2 : -1),
                b.dim(tb ? -1 : -2),
                {}};
  s.batch = broadcast_dims("matmul", Type{a.dtype, leading(a, 2)},
                           Type{b.dtype, leading(b, 2)});
  return s;
}

Types infer_matmul(const InferArgs& args) {
  const Type &a = args.in[0], &b = args.in[1];
  for (int i : {0, 1}) {
    expect_float(args, i);
    expect_min_rank(args, i, 2);
  }
  // Weights may be stored in bf16 beside f32 activations.
  if (a.dtype != DType::F32 || b.dtype != DType::BF16)
    expect_dtype_of(args, 1, 0);
  bool ta = args.node.b("transpose_a"), tb = args.node.b("transpose_b");
  i64 k = a.dim(ta ? -2 : -1), kb = b.dim(tb ? -1 : -2);
  if (k != kb) {
    std::string hint;
    if (k == b.dim(tb ? -2 : -1))
      hint = tb ? "; is transpose_b meant?" : "; did you mean transpose_b?";
    else if (kb == a.dim(ta ? -1 : -2))
      hint = ta ? "; is transpose_a meant?" : "; did you mean transpose_a?";
    user_error(
        "matmul: inner dimensions differ: lhs {}{} has {}, rhs {}{} "
        "has {}{}",
        to_string(a), ta ? " (transposed)" : "", k, to_string(b),
        tb ? " (transposed)" : "", kb, hint);
  }
  MatmulShape s = shape_of(args.node, a, b);
  s.batch.insert(s.batch.end(), {s.m, s.n});
  return {Type{a.dtype, s.batch}};
}

void eval_matmul(const EvalArgs& args) {
  const Tensor &a = *args.in[0], &b = *args.in[1];
  MatmulShape s = shape_of(args.node, a.type, b.type);
  Dims sa = broadcast_strides(Type{DType::F32, leading(a.type, 2)}, s.batch);
  Dims sb = broadcast_strides(Type{DType::F32, leading(b.type, 2)}, s.batch);
  std::vector<std::pair<i64, i64>> batches;  // matrices of a and b
  i64 step_a = sa.empty() ? 0 : sa.back(), step_b = sb.empty() ? 0 : sb.back();
  for_each_row(s.batch, sa, [&](i64, i64 in, i64 run) {
    for (i64 i = 0; i < run; ++i) batches.emplace_back(in + i * step_a, 0);
  });
  for_each_row(s.batch, sb, [&](i64 o, i64 in, i64 run) {
    for (i64 i = 0; i < run; ++i) batches[o + i].second = in + i * step_b;
  });
  double* c = args.out[0].data.data();
  for (auto [ia, ib] : batches) {
    gemm(s.m, s.n, s.k, a.data.data() + ia * s.m * s.k,
         args.node.b("transpose_a"), b.data.data() + ib * s.k * s.n,
         args.node.b("transpose_b"), args.node.f("scale"), c);
    c += s.m * s.n;
  }
}

Cost matmul_cost(const Node& n) {
  i64 k = n.operand(0).type().dim(n.b("transpose_a") ? -2 : -1);
  return io_cost(n, 2.0 * double(n.type().numel()) * double(k));
}

// For one matrix b under a batch of a, its gradient is one product over all
// rows of the batch: nothing of the batch's size is made.
bool rows_collapse(const Node& n) {
  const Type &a = n.operand(0).type(), &b = n.operand(1).type();
  return a.rank() > 2 && b.rank() == 2 && !n.b("transpose_a");
}

Value as_rows(Builder& b, Value v) {
  i64 columns = v.type().dim(-1);
  return b.reshape(v, {product(v.type().dims.data(),
                               v.type().dims.data() + v.type().rank() - 1),
                       columns});
}

Values vjp_matmul(Builder& b, Node& n, Gradients dys) {
  Value x = n.operand(0), w = n.operand(1), dy = dys[0];
  bool ta = n.b("transpose_a"), tb = n.b("transpose_b");
  double scale = n.f("scale");
  if (x.type().dtype != w.type().dtype)
    user_error("matmul: has no gradient where b is stored in bf16 beside f32");
  Values g(2);
  if (wants_grad(x)) {
    Value dx = ta ? b.matmul(w, dy, tb, true, scale)
                  : b.matmul(dy, w, false, !tb, scale);
    g[0] = b.sum_to(dx, x.type().dims);
  }
  if (wants_grad(w)) {
    Value rows = x, dy_rows = dy;
    if (rows_collapse(n)) {
      rows = as_rows(b, x);
      dy_rows = as_rows(b, dy);
    }
    Value dw = tb ? b.matmul(dy_rows, rows, true, ta, scale)
                  : b.matmul(rows, dy_rows, !ta, false, scale);
    g[1] = b.sum_to(dw, w.type().dims);
  }
  return g;
}

// ---- grouped ---------------------------------------------------------------

void expect_offsets(const InferArgs& a, int i, i64 groups) {
  expect_dtype(a, i, DType::I32);
  expect_dims(a, i, {groups + 1});
}

Types infer_grouped(const InferArgs& a) {
  expect_float(a, 0);
  expect_rank(a, 0, 2);
  expect_dtype_of(a, 1, 0);
  expect_rank(a, 1, 3);
  bool tb = a.node.b("transpose_b");
  i64 k = a.in[1].dim(tb ? 2 : 1), n = a.in[1].dim(tb ? 1 : 2);
  if (a.in[0].dims[1] != k)
    user_error(
        "grouped_matmul: inner dimensions differ: x {} has {}, w {}{} "
        "has {}{}",
        to_string(a.in[0]), a.in[0].dims[1], to_string(a.in[1]),
        tb ? " (transposed)" : "", k,
        a.in[0].dims[1] == n
            ? tb ? "; is transpose_b meant?" : "; did you mean transpose_b?"
            : "");
  expect_offsets(a, 2, a.in[1].dims[0]);
  if (a.in.size() > 3) {
    expect_dtype_of(a, 3, 0);
    expect_dims(a, 3, {a.in[1].dims[0], n});
  }
  return {Type{a.in[0].dtype, {a.in[0].dims[0], n}}};
}

void eval_grouped(const EvalArgs& a) {
  const Tensor &x = *a.in[0], &w = *a.in[1];
  i64 k = x.type.dims[1], n = a.out[0].type.dims[1];
  check_offsets(a, 2, x.type.dims[0]);
  for (i64 e = 0; e < w.type.dims[0]; ++e) {
    auto first = i64(a.in[2]->data[e]), last = i64(a.in[2]->data[e + 1]);
    double* y = a.out[0].data.data() + first * n;
    if (a.in.size() > 3)
      for (i64 s = 0; s < last - first; ++s)
        std::copy_n(a.in[3]->data.data() + e * n, n, y + s * n);
    gemm(last - first, n, k, x.data.data() + first * k, false,
         w.data.data() + e * k * n, a.node.b("transpose_b"), 1, y);
  }
}

Values vjp_grouped(Builder& b, Node& n, Gradients dys) {
  Value x = n.operand(0), w = n.operand(1), offsets = n.operand(2);
  Value dy = dys[0];
  bool tb = n.b("transpose_b");
  Values g(size_t(n.num_operands()));
  if (wants_grad(x))
    g[0] = b.op(Op::GroupedMatmul, {dy, w, offsets}, {{"transpose_b", !tb}});
  if (wants_grad(w))
    g[1] = b.op(Op::GroupedMatmulDw, {x, dy, offsets}, {{"transpose", tb}});
  if (n.num_operands() > 3) g[3] = b.op(Op::SegmentSum, {dy, offsets});
  return g;
}

Types infer_grouped_dw(const InferArgs& a) {
  expect_float(a, 0);
  expect_rank(a, 0, 2);
  expect_dtype_of(a, 1, 0);
  expect_rank(a, 1, 2);
  if (a.in[0].dims[0] != a.in[1].dims[0])
    user_error("grouped_matmul_dw: {} and {} should have equally many rows",
               describe(a, 0), describe(a, 1));
  expect_rank(a, 2, 1);
  if (a.in[2].dims[0] < 1)
    user_error("grouped_matmul_dw: offsets need one entry more than groups");
  i64 groups = a.in[2].dims[0] - 1;
  expect_offsets(a, 2, groups);
  i64 k = a.in[0].dims[1], n = a.in[1].dims[1];
  if (a.node.b("transpose")) std::swap(k, n);
  return {Type{a.in[0].dtype, {groups, k, n}}};
}

void eval_grouped_dw(const EvalArgs& a) {
  const Tensor *x = a.in[0], *dy = a.in[1];
  if (a.node.b("transpose")) std::swap(x, dy);
  i64 k = x->type.dims[1], n = dy->type.dims[1];
  check_offsets(a, 2, x->type.dims[0]);
  for (i64 e = 0; e < a.out[0].type.dims[0]; ++e) {
    auto first = i64(a.in[2]->data[e]), last = i64(a.in[2]->data[e + 1]);
    gemm(k, n, last - first, x->data.data() + first * k, true,
         dy->data.data() + first * n, false, 1,
         a.out[0].data.data() + e * k * n);
  }
}

Values vjp_grouped_dw(Builder& b, Node& n, Gradients dw) {
  Value x = n.operand(0), dy = n.operand(1), offsets = n.operand(2);
  bool t = n.b("transpose");
  return {b.op(Op::GroupedMatmul, {dy, dw[0], offsets}, {{"transpose_b", !t}}),
          b.op(Op::GroupedMatmul, {x, dw[0], offsets}, {{"transpose_b", t}}),
          {}};
}

const AttrDef kMatmulAttrs[] = {
    optional("transpose_a", false, "a is stored [...,K,M]"),
    optional("transpose_b", false, "b is stored [...,N,K]"),
    optional("scale", 1.0, "factor on the product")};
const AttrDef kGroupedAttrs[] = {
    optional("transpose_b", false, "w is stored [E,N,K]")};
const AttrDef kGroupedDwAttrs[] = {
    optional("transpose", false, "the result is [E,N,K]")};

}  // namespace

const OpDef kMatmul = {
    .name = "matmul",
    .summary =
        "scale a[...,M,K] b[...,K,N]; leading axes broadcast. b may be bf16 "
        "beside an f32 a, as weights that are only stored so.",
    .min_inputs = 2,
    .max_inputs = 2,
    .attrs = kMatmulAttrs,
    .operand_names = {"a", "b"},
    .infer = infer_matmul,
    .vjp = vjp_matmul,
    .eval = eval_matmul,
    .cost = matmul_cost,
};

const OpDef kGroupedMatmul = {
    .name = "grouped_matmul",
    .summary =
        "Row s of x[S,K] in [offsets[e], offsets[e+1]) times w[e] "
        "[K,N], plus bias[e] if given; rows past offsets[E] give 0. "
        "Offsets ascend from 0.",
    .min_inputs = 3,
    .max_inputs = 4,
    .attrs = kGroupedAttrs,
    .operand_names = {"x", "w", "offsets", "bias"},
    .infer = infer_grouped,
    .vjp = vjp_grouped,
    .eval = eval_grouped,
    .cost =
        [](const Node& n) {
          return io_cost(n, 2.0 * double(n.operand(0).type().numel()) *
                                double(n.type().dims[1]));
        },
};

const OpDef kGroupedMatmulDw = {
    .name = "grouped_matmul_dw",
    .summary =
        "For each e the sum over rows s in [offsets[e], offsets[e+1]) "
        "of x[s]^T dy[s]: [E,K,N].",
    .min_inputs = 3,
    .max_inputs = 3,
    .attrs = kGroupedDwAttrs,
    .operand_names = {"x", "dy", "offsets"},
    .infer = infer_grouped_dw,
    .vjp = vjp_grouped_dw,
    .eval = eval_grouped_dw,
    .cost =
        [](const Node& n) {
          return io_cost(n, 2.0 * double(n.operand(0).type().numel()) *
                                double(n.operand(1).type().dims[1]));
        },
};

}  // namespace moec::ops
