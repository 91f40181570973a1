// AdamW as one elementwise pass, and the norm of all gradients.
#include <cmath>

#include "codegen/cpu/lowerings.h"
#include "support/error.h"

namespace moec {
namespace {

// Builds flat programs out of loads and formulas.
struct Flat {
  RowProgram p;

  int load(int buffer, DType t, i64 stride) {
    Expr e;
    e.dtype = t;
    e.access.buffer = buffer;
    e.access.dtype = t;
    e.access.strides = {stride};
    return p.add(std::move(e));
  }
  int constant(double v) {
    Expr e;
    e.kind = ExprKind::Constant;
    e.number = v;
    return p.add(std::move(e));
  }
  int op(Op o, std::vector<int> in, std::string attr = "") {
    Expr e;
    e.kind = ExprKind::Scalar;
    e.op = o;
    e.in = std::move(in);
    e.attr = std::move(attr);
    return p.add(std::move(e));
  }
  int mul(int a, int b) { return op(Op::Mul, {a, b}); }
  void store(int value, int buffer, DType t) {
    RowStore s;
    s.value = value;
    s.to.buffer = buffer;
    s.to.dtype = t;
    s.to.strides = {1};
    p.stores.push_back(std::move(s));
  }
};

}  // namespace

// The formulas of the op's definition (ir/ops/optimizer.cpp). The bias
// corrections 1 / (1 - beta^step) go through expm1: beta^step is near 1.
Lowered lower_adamw(const Node& n, const Target& t) {
  double beta1 = n.f("beta1"), beta2 = n.f("beta2");
  Flat f;
  f.p.label = "adamw";
  f.p.dims = {n.type().numel()};
  auto tensor = [&](int i) { return f.load(i, n.operand(i).type().dtype, 1); };
  auto scalar = [&](int i) { return f.load(i, n.operand(i).type().dtype, 0); };
  int lr = scalar(4), step = scalar(5), scale = scalar(6);
  auto correction = [&](double beta) {
    int e =
        f.op(Op::Exp, {f.mul(step, f.constant(std::log(beta)))}, "minus_one");
    return f.op(Op::Div, {f.constant(-1), e});
  };
  int c1 = correction(beta1), c2 = correction(beta2);
  int rate = f.mul(lr, c1);
  int keep = f.op(Op::Sub,
                  {f.constant(1), f.mul(lr, f.constant(n.f("weight_decay")))});
  int g = f.mul(tensor(1), scale);
  int m = f.op(Op::Add, {f.mul(tensor(2), f.constant(beta1)),
                         f.mul(g, f.constant(1 - beta1))});
  int v = f.op(Op::Add, {f.mul(tensor(3), f.constant(beta2)),
                         f.mul(f.mul(g, g), f.constant(1 - beta2))});
  int root = f.op(Op::Sqrt, {f.mul(v, c2)});
  int below = f.op(Op::Add, {root, f.constant(n.f("eps"))});
  int change = f.op(Op::Div, {f.mul(m, rate), below});
  int p = f.op(Op::Sub, {f.mul(tensor(0), keep), change});
  f.store(p, 7, n.type(0).dtype);
  f.store(m, 8, n.type(1).dtype);
  f.store(v, 9, n.type(2).dtype);
  RowLowering l(n, t);
  l.add(std::move(f.p));
  return l.take();
}

// Partial sums of squares of fixed blocks, then their sum in order.
Lowered lower_global_norm(const Node& n, const Target& t) {
  constexpr i64 kBlock = 16384;
  int operands = n.num_operands(), workspace = operands + 1;
  i64 partials = 0;
  Lowered out;
  for (int i = 0; i < operands; ++i) {
    const Type& g = n.operand(i).type();
    i64 size = g.numel(), blocks = (size + kBlock - 1) / kBlock;
    if (size == 0) continue;
    Flat f;
    f.p.label = "square_sum";
    f.p.dims = {size};
    int x = f.load(0, g.dtype, 1);
    Expr r;
    r.kind = ExprKind::Reduce;
    r.in = {f.mul(x, x)};
    RowStore s;
    s.kind = StoreKind::Row;
    s.value = f.p.add(std::move(r));
    s.to.buffer = 1;
    s.to.strides = {0};
    s.block_stride = 1;
    f.p.stores.push_back(std::move(s));
    RowPlan plan;
    plan.cols_per_task = kBlock;
    plan.col_blocks = blocks;
    if (blocks == 1) plan.cols_per_task = size;
    LoweredLaunch launch;
    launch.spec = row_kernel(std::move(f.p), t, plan);
    launch.buffers = {i, workspace};
    launch.offsets = {0, partials * 4};
    out.launches.push_back(std::move(launch));
    partials += blocks;
  }
  Flat f;
  f.p.label = "norm_of_sums";
  f.p.dims = {partials};
  Expr r;
  r.kind = ExprKind::Reduce;
  r.in = {f.load(0, DType::F32, 1)};
  int total = f.p.add(std::move(r));
  RowStore s;
  s.kind = StoreKind::Row;
  s.value = f.op(Op::Sqrt, {total});
  s.to.buffer = 1;
  s.to.dtype = n.type().dtype;
  s.to.strides = {0};
  f.p.stores.push_back(std::move(s));
  RowPlan plan;
  plan.cols_per_task = partials;
  LoweredLaunch launch;
  launch.spec = row_kernel(std::move(f.p), t, plan);
  launch.buffers = {workspace, operands};
  out.launches.push_back(std::move(launch));
  out.workspace_bytes = (partials * 4 + 63) / 64 * 64;
  return out;
}

}  // namespace moec
