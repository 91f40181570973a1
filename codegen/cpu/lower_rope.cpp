// Rotary positions: a table of cosines and sines, then one multiply-add pass.
#include <fmt/format.h>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/lowerings.h"
#include "ir/rope.h"

namespace moec {
namespace {

// cos and sin f32[positions, half], of the position's number or positions[i].
KernelSpec table_kernel(i64 positions, i64 width, double theta, double sign,
                        bool given, Access cos, Access sin, int table) {
  i64 half = width / 2;
  constexpr i64 kPerTask = 64;
  KernelSpec k;
  k.key = fmt::format("rope_table {}x{} theta {} sign {} {} at {} {} in {}",
                      positions, half, theta, sign, given, cos.offset,
                      sin.offset, table);
  k.tasks = (positions + kPerTask - 1) / kPerTask;
  k.bytes = 8.0 * double(positions * half);
  k.emit = [=](Emit& e) {
    const int w = e.lanes();
    V p0 = e.mul(e.task(), kPerTask);
    V p1 = e.min(e.add(p0, kPerTask), e.i(positions));
    for (i64 c = 0; c < half; c += w) {
      std::vector<double> frequency;
      for (i64 i = c; i < c + w; ++i)
        frequency.push_back(i < half ? rope_frequency(theta, i, width) : 0);
      V f = e.vec(frequency);
      V mask = half - c < w ? e.mask(e.i(half - c)) : nullptr;
      e.loop(p0, p1, 1, [&](V p) {
        V at = given ? e.load(DType::I32, e.at(e.buffer(1), p))
                     : e.trunc(p, Ty::I32);
        V angle = e.mul(e.splat(e.to_f32(at)), f);
        V place = e.add(e.mul(p, half), c);
        V s = e.sin(angle);
        if (sign < 0) s = e.neg(s);
        e.vstore(DType::F32, e.cos(angle),
                 e.at(e.buffer(table), e.add(place, cos.offset)), mask);
        e.vstore(DType::F32, s, e.at(e.buffer(table), e.add(place, sin.offset)),
                 mask);
      });
    }
  };
  return k;
}

}  // namespace

Lowered lower_rope(const Node& n, const Target& t) {
  const Type& x = n.type();
  i64 axis = n.i("axis") < 0 ? n.i("axis") + x.rank() : n.i("axis");
  i64 width = x.dim(-1), half = width / 2, steps = x.dims[axis];
  bool given = n.num_operands() > 1;
  bool by_row = given && n.operand(1).type().rank() == 2;
  i64 positions = given ? n.operand(1).type().numel() : steps;
  int result = n.num_operands();
  RowLowering l(n, t);
  Access cos = l.workspace(DType::F32, positions * half);
  Access sin = l.workspace(DType::F32, positions * half);
  l.launch(table_kernel(positions, width, n.f("theta"), n.b("inverse") ? -1 : 1,
                        given, cos, sin, result + 1));
  RowProgram p;
  p.label = "rope";
  p.dims = x.dims;
  p.dims.back() = half;
  Dims strides = row_major_strides(x.dims);
  for (Access* a : {&cos, &sin}) {
    a->strides.assign(p.dims.size(), 0);
    a->strides[p.dims.size() - 1] = 1;
    a->strides[axis] = half;
    if (by_row) a->strides[0] = steps * half;
  }
  auto load = [&](int buffer, DType dt, const Access& from) {
    Expr e;
    e.dtype = dt;
    e.access = from;
    e.access.buffer = buffer;
    e.access.dtype = dt;
    return p.add(std::move(e));
  };
  Access low, high;
  low.strides = high.strides = strides;
  high.offset = half;
  int a = load(0, x.dtype, low), b = load(0, x.dtype, high);
  int c = load(cos.buffer, DType::F32, cos),
      d = load(sin.buffer, DType::F32, sin);
  auto op = [&](Op o, int u, int v) {
    Expr e;
    e.kind = ExprKind::Scalar;
    e.op = o;
    e.dtype = DType::F32;
    e.in = {u, v};
    return p.add(std::move(e));
  };
  auto store = [&](int v, Access to) {
    RowStore s;
    s.value = v;
    s.to = std::move(to);
    s.to.buffer = result;
    s.to.dtype = x.dtype;
    p.stores.push_back(std::move(s));
  };
  store(op(Op::Sub, op(Op::Mul, a, c), op(Op::Mul, b, d)), low);
  store(op(Op::Add, op(Op::Mul, b, c), op(Op::Mul, a, d)), high);
  l.add(std::move(p));
  return l.take();
}

}  // namespace moec
