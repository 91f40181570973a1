// Matrix products: descriptors for the kernel family of matmul.h.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/epilogue.h"
#include "codegen/cpu/gemv.h"
#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/matmul.h"
#include "passes/few_rows.h"
#include "support/error.h"

namespace moec {
namespace {

// The matrix in the last two dimensions of `t`.
MatmulOperand matrix(int buffer, const Type& t, bool transposed) {
  MatmulOperand o;
  o.buffer = buffer;
  o.dtype = t.dtype;
  i64 width = t.dim(-1);
  o.row_stride = transposed ? 1 : width;
  o.col_stride = transposed ? width : 1;
  return o;
}

// Strides of the leading dimensions of `t` along `batch`, right-aligned.
std::vector<i64> batch_strides(const Type& t, const Dims& batch) {
  std::vector<i64> s(batch.size(), 0);
  Dims strides = row_major_strides(t.dims);
  i64 own = t.rank() - 2;
  for (i64 i = 0; i < own; ++i)
    if (t.dims[i] != 1) s[batch.size() - own + i] = strides[i];
  return s;
}

bool no_batch(const Type& t) {
  return std::all_of(t.dims.begin(), t.dims.end() - 2,
                     [](i64 d) { return d == 1; });
}

void launch(Lowered& out, KernelSpec k, std::vector<int> buffers) {
  LoweredLaunch l;
  l.spec = std::move(k);
  l.buffers = std::move(buffers);
  out.launches.push_back(std::move(l));
}

// On the node's buffers as they are numbered; `workspace` comes after them.
void launch_product(Lowered& out, const MatmulDesc& d, const Target& t,
                    int workspace) {
  MatmulKernels k = matmul_kernels(d, t, workspace);
  std::vector<int> buffers(size_t(workspace + (k.workspace_bytes ? 1 : 0)));
  std::iota(buffers.begin(), buffers.end(), 0);
  for (KernelSpec& spec : k.launches) launch(out, std::move(spec), buffers);
  out.workspace_bytes = k.workspace_bytes;
}

// Buffers 0 and 1 times, 2 the result.
MatmulDesc describe(const Node& n) {
  const Type &a = n.operand(0).type(), &b = n.operand(1).type(), &c = n.type();
  bool ta = n.b("transpose_a"), tb = n.b("transpose_b");
  MatmulDesc d;
  d.m = c.dim(-2);
  d.n = c.dim(-1);
  d.k = a.dim(ta ? -2 : -1);
  d.scale = n.f("scale");
  d.bf16 = a.dtype == DType::BF16 && b.dtype == DType::BF16;
  d.a = matrix(0, a, ta);
  d.b = matrix(1, b, tb);
  d.outputs = {matrix(2, c, false)};
  Dims batch(c.dims.begin(), c.dims.end() - 2);
  if (!ta && no_batch(b)) {
    // Rows of all batches meet the same matrix.
    for (i64 s : batch) d.m *= s;
  } else {
    d.batch.assign(batch.begin(), batch.end());
    d.a.batch_strides = batch_strides(a, batch);
    d.b.batch_strides = batch_strides(b, batch);
    d.outputs[0].batch_strides = batch_strides(c, batch);
  }
  return d;
}

}  // namespace

Lowered lower_matmul(const Node& n, const Target& t) {
  MatmulDesc d = describe(n);
  Lowered out;
  if (has_few_rows(n))
    launch(out,
           gemv_kernel({.rows = d.m,
                        .n = d.n,
                        .k = d.k,
                        .x = d.a.dtype,
                        .weights = d.b.dtype,
                        .y = d.outputs[0].dtype,
                        .scale = d.scale},
                       t),
           {0, 1, 2});
  else
    launch_product(out, d, t, 3);
  return out;
}

Lowered lower_matmul_fusion(const Node& n, const Target& t) {
  ProductFusion f = take_apart(n);
  MatmulDesc d = describe(*f.product);
  d.a.buffer = f.operands[0];
  d.b.buffer = f.operands[1];
  d.outputs.clear();
  for (int o : f.outputs) {
    MatmulOperand to = matrix(n.num_operands() + o, n.type(o), false);
    d.outputs.push_back(to);
  }
  for (int x : f.extras)
    d.extras.push_back(beside_product(x, n.operand(x).type(), d.n));
  Epilogue epilogue = f.epilogue();
  d.cheap_epilogue = epilogue.cost <= 3;
  d.epilogue_key = std::move(epilogue.key);
  d.epilogue = std::move(epilogue.emit);
  Lowered out;
  launch_product(out, d, t, n.num_operands() + n.num_results());
  return out;
}

// Rows past the last expert's are zero.
Lowered lower_grouped_matmul(const Node& n, const Target& t) {
  const Type &x = n.operand(0).type(), &w = n.operand(1).type(), &y = n.type();
  MatmulDesc d;
  d.m = x.dims[0];
  d.k = x.dims[1];
  d.n = y.dims[1];
  d.group = MatmulGroup::Rows;
  d.experts = w.dims[0];
  d.offsets_buffer = 2;
  d.bf16 = x.dtype == DType::BF16 && w.dtype == DType::BF16;
  d.a = matrix(0, x, false);
  d.b = matrix(1, w, n.b("transpose_b"));
  d.b.group_stride = w.dims[1] * w.dims[2];
  int result = n.num_operands();
  std::vector<int> buffers = {0, 1, 2};
  if (n.num_operands() == 4) {
    MatmulOperand bias;
    bias.buffer = 3;
    bias.dtype = n.operand(3).type().dtype;
    bias.row_stride = 0;
    bias.group_stride = d.n;
    d.extras = {bias};
    d.epilogue_key = "bias";
    d.epilogue = [](Emit& e, V acc, std::span<V const> extras) {
      return Vs{e.add(acc, extras[0])};
    };
    buffers.push_back(3);
  }
  d.outputs = {matrix(int(buffers.size()), y, false)};
  buffers.push_back(result);
  Lowered out;
  launch(out, matmul_kernel(d, t), buffers);

  KernelSpec zero;
  i64 rows = y.dims[0], cols = y.dims[1], experts = d.experts;
  i64 bytes = rows * cols * dtype_size(y.dtype);
  zero.key = fmt::format("zero_tail {} rows of {} from offset {}", rows,
                         cols * dtype_size(y.dtype), experts);
  i64 row_bytes = rows ? bytes / rows : 0;
  zero.emit = [=](Emit& e) {
    V used = e.sext(e.load(DType::I32, e.at(e.buffer(0), experts)), Ty::I64);
    V first = e.mul(used, row_bytes), end = e.i(bytes);
    const int w = 4 * e.lanes();
    V zeros = e.zero(Ty::I8, w);
    V whole = e.add(first, e.and_(e.sub(end, first), e.i(-i64(w))));
    e.loop(first, whole, w,
           [&](V at) { e.store_raw(zeros, e.at(e.buffer(1), at, 1), 1); });
    e.loop(whole, end, 1, [&](V at) {
      e.store_raw(e.zero(Ty::I8), e.at(e.buffer(1), at, 1), 1);
    });
  };
  launch(out, std::move(zero), {2, result});
  return out;
}

Lowered lower_grouped_matmul_dw(const Node& n, const Target& t) {
  const Type &x = n.operand(0).type(), &dy = n.operand(1).type(), &w = n.type();
  bool swap = n.b("transpose");
  // dw[e] = x^T dy, or dy^T x.
  const Type &left = swap ? dy : x, &right = swap ? x : dy;
  MatmulDesc d;
  d.m = left.dims[1];
  d.n = right.dims[1];
  d.k = x.dims[0];
  d.group = MatmulGroup::Reduction;
  d.experts = w.dims[0];
  d.offsets_buffer = 2;
  d.bf16 = x.dtype == DType::BF16 && dy.dtype == DType::BF16;
  d.a = matrix(swap ? 1 : 0, left, true);
  d.b = matrix(swap ? 0 : 1, right, false);
  d.outputs = {matrix(3, w, false)};
  d.outputs[0].group_stride = w.dims[1] * w.dims[2];
  Lowered out;
  launch(out, matmul_kernel(d, t), {0, 1, 2, 3});
  return out;
}

}  // namespace moec
