// Ops that only move elements, where a row program does not say it.
#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/target.h"
#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

Access place(int buffer, DType t, Dims strides, i64 offset = 0) {
  Access a;
  a.buffer = buffer;
  a.dtype = t;
  a.offset = offset;
  a.strides = std::move(strides);
  return a;
}

// to[...] = from[...] over `dims`. A space without dimensions is one element.
RowProgram copy(std::string label, Dims dims, Access from, Access to) {
  RowProgram p;
  p.label = std::move(label);
  if (dims.empty()) {
    dims.push_back(1);
    from.strides.push_back(1);
    to.strides.push_back(1);
  }
  p.dims = std::move(dims);
  Expr e;
  e.dtype = from.dtype;
  e.access = std::move(from);
  RowStore s;
  s.value = p.add(std::move(e));
  s.to = std::move(to);
  p.stores.push_back(std::move(s));
  return p;
}

RowProgram fill(std::string label, const Type& t, int buffer, double value) {
  RowProgram p;
  p.label = std::move(label);
  p.dims = {t.numel()};
  Expr e;
  e.kind = ExprKind::Constant;
  e.dtype = t.dtype;
  e.number = value;
  RowStore s;
  s.value = p.add(std::move(e));
  s.to = place(buffer, t.dtype, {1});
  p.stores.push_back(std::move(s));
  return p;
}

Ty raw_type(DType t) {
  switch (dtype_size(t)) {
    case 1: return Ty::I8;
    case 2: return Ty::I16;
    case 4: return Ty::I32;
    default: return Ty::I64;
  }
}

// A transpose of two dimensions, in tiles through registers: the columns are
// the last dimension of the result, the lines that of the operand.
struct Tiles {
  Dims outer, outer_from, outer_to;  // other dimensions and their strides
  i64 lines = 1, line_to = 1;        // operand stride 1
  i64 cols = 1, col_from = 1;        // result stride 1
  i64 lines_per_task = 1;
  DType dtype = DType::F32;
};

class TileKernel {
 public:
  TileKernel(Emit& e, const Tiles& t)
      : e_(e),
        t_(t),
        raw_(raw_type(t.dtype)),
        size_(dtype_size(t.dtype)),
        n_(size_ == 8 ? e.lanes() / 2 : e.lanes()) {}

  void run() {
    i64 blocks = (t_.lines + t_.lines_per_task - 1) / t_.lines_per_task;
    V block = e_.urem(e_.task(), e_.i(blocks));
    V rest = e_.udiv(e_.task(), e_.i(blocks));
    V from = e_.i(0), to = e_.i(0);
    for (size_t k = t_.outer.size(); k-- > 0;) {
      V c = e_.urem(rest, e_.i(t_.outer[k]));
      rest = e_.udiv(rest, e_.i(t_.outer[k]));
      from = e_.add(from, e_.mul(c, t_.outer_from[k]));
      to = e_.add(to, e_.mul(c, t_.outer_to[k]));
    }
    from_ = e_.at(e_.buffer(0), from, size_);
    to_ = e_.at(e_.buffer(1), to, size_);
    V l0 = e_.mul(block, t_.lines_per_task);
    V l1 = e_.min(e_.add(l0, t_.lines_per_task), e_.i(t_.lines));
    e_.loop(l0, l1, n_, [&](V l) {
      e_.loop(e_.i(0), e_.i(t_.cols), n_, [&](V c) { tile(l, c, l1); });
    });
  }

 private:
  void tile(V l, V c, V end) {
    V line_mask = t_.lines % n_ || t_.lines_per_task % n_
                      ? e_.mask(e_.sub(end, l), n_)
                      : nullptr;
    V col_mask = t_.cols % n_ ? e_.mask(e_.sub(e_.i(t_.cols), c), n_) : nullptr;
    Vs rows;
    for (int j = 0; j < n_; ++j) {
      V col = e_.add(c, j);
      if (col_mask) col = e_.min(col, e_.i(t_.cols - 1));
      V p = e_.at(from_, e_.add(e_.mul(col, t_.col_from), l), size_);
      rows.push_back(e_.load_raw(raw_, p, n_, int(size_), line_mask));
    }
    rows = e_.transpose(rows);
    for (int i = 0; i < n_; ++i) {
      V line = e_.add(l, i);
      // Lines past the end repeat the last store's place with its own value.
      auto put = [&] {
        V p = e_.at(to_, e_.add(e_.mul(line, t_.line_to), c), size_);
        e_.store_raw(rows[i], p, int(size_), col_mask);
      };
      if (line_mask && i > 0)
        e_.if_(e_.lt(line, end), put);
      else
        put();
    }
  }

  Emit& e_;
  const Tiles& t_;
  Ty raw_;
  i64 size_;
  int n_;
  V from_ = nullptr, to_ = nullptr;
};

KernelSpec tile_kernel(Tiles t) {
  i64 outer = 1;
  for (i64 d : t.outer) outer *= d;
  i64 elements = outer * t.lines * t.cols;
  i64 per_task = task_elements(0.2, elements);
  t.lines_per_task =
      std::max<i64>(16, per_task / std::max<i64>(1, t.cols) / 16 * 16);
  KernelSpec k;
  k.key = fmt::format("transpose {} {}x{} to {} from {} by {} outer {} {} {}",
                      dtype_name(t.dtype), t.lines, t.cols, t.line_to,
                      t.col_from, t.lines_per_task, fmt::join(t.outer, ","),
                      fmt::join(t.outer_from, ","), fmt::join(t.outer_to, ","));
  k.tasks = outer * ((t.lines + t.lines_per_task - 1) / t.lines_per_task);
  k.bytes = 2.0 * double(elements * dtype_size(t.dtype));
  k.emit = [t = std::move(t)](Emit& e) { TileKernel(e, t).run(); };
  return k;
}

}  // namespace

KernelSpec copy_kernel(i64 bytes) {
  constexpr i64 kPerTask = 512 << 10;
  KernelSpec k;
  k.key = fmt::format("copy {} bytes", bytes);
  k.tasks = (bytes + kPerTask - 1) / kPerTask;
  k.bytes = 2.0 * double(bytes);
  k.emit = [=](Emit& e) {
    const int w = 4 * e.lanes();
    V first = e.mul(e.task(), kPerTask);
    V end = e.min(e.add(first, kPerTask), e.i(bytes));
    V whole = e.add(first, e.and_(e.sub(end, first), e.i(-i64(w))));
    auto move = [&](V at, int width) {
      V from = e.at(e.buffer(0), at, 1), to = e.at(e.buffer(1), at, 1);
      e.store_raw(e.load_raw(Ty::I8, from, width, 1), to, 1);
    };
    e.loop(first, whole, w, [&](V at) { move(at, w); });
    e.loop(whole, end, 1, [&](V at) { move(at, -1); });
  };
  return k;
}

Lowered lower_reshape(const Node& n, const Target& t) {
  const Type& x = n.type();
  RowLowering l(n, t);
  l.add(copy("copy", {x.numel()}, place(0, x.dtype, {1}),
             place(1, x.dtype, {1})));
  Lowered out = l.take();
  out.launches[0].copy_of = 0;
  out.launches[0].copy_to = 0;
  return out;
}

Lowered lower_transpose(const Node& n, const Target& t) {
  const Type &x = n.operand(0).type(), &y = n.type();
  Dims in = row_major_strides(x.dims), from;
  for (i64 axis : n.ints("perm")) from.push_back(in[axis]);
  RowProgram p = copy("transpose", y.dims, place(0, x.dtype, from),
                      place(1, y.dtype, row_major_strides(y.dims)));
  collapse(p, false);
  const Dims& f = p.exprs[0].access.strides;
  const Dims& to = p.stores[0].to.strides;
  size_t last = p.dims.size() - 1, line = last;
  for (size_t k = 0; k < last; ++k)
    if (f[k] == 1) line = k;
  RowLowering l(n, t);
  if (f.back() == 1 || line == last || p.dims[line] < 4 || p.dims[last] < 4) {
    l.add(std::move(p));
    return l.take();
  }
  Tiles tiles;
  tiles.dtype = x.dtype;
  tiles.lines = p.dims[line];
  tiles.line_to = to[line];
  tiles.cols = p.dims[last];
  tiles.col_from = f[last];
  for (size_t k = 0; k < last; ++k) {
    if (k == line) continue;
    tiles.outer.push_back(p.dims[k]);
    tiles.outer_from.push_back(f[k]);
    tiles.outer_to.push_back(to[k]);
  }
  l.launch(tile_kernel(std::move(tiles)));
  return l.take();
}

Lowered lower_concat(const Node& n, const Target& t) {
  const Type& y = n.type();
  i64 axis = n.i("axis") < 0 ? n.i("axis") + y.rank() : n.i("axis");
  Dims to = row_major_strides(y.dims);
  i64 at = 0;
  RowLowering l(n, t);
  for (int i = 0; i < n.num_operands(); ++i) {
    const Type& x = n.operand(i).type();
    if (x.numel() > 0)
      l.add(copy("concat", x.dims, place(i, x.dtype, row_major_strides(x.dims)),
                 place(n.num_operands(), y.dtype, to, at * to[axis])));
    at += x.dims[axis];
  }
  return l.take();
}

Lowered lower_pad(const Node& n, const Target& t) {
  const Type &x = n.operand(0).type(), &y = n.type();
  RowLowering l(n, t);
  l.add(fill("fill", y, 1, n.f("value")));
  if (x.numel() == 0) return l.take();
  // Negative padding cuts: the part of x that lies in y.
  Dims in = row_major_strides(x.dims), to = row_major_strides(y.dims), dims;
  i64 from_at = 0, to_at = 0;
  for (i64 k = 0; k < x.rank(); ++k) {
    i64 low = n.ints("low")[k];
    i64 first = std::max<i64>(0, -low);
    i64 end = std::min(x.dims[k], y.dims[k] - low);
    if (end <= first) return l.take();
    dims.push_back(end - first);
    from_at += first * in[k];
    to_at += (first + low) * to[k];
  }
  l.add(copy("pad", dims, place(0, x.dtype, in, from_at),
             place(1, y.dtype, to, to_at)));
  return l.take();
}

// The slice lies in one piece per outer index.
Lowered lower_dynamic_update_slice(const Node& n, const Target& t) {
  const Type &x = n.operand(0).type(), &u = n.operand(1).type();
  i64 axis = n.i("axis") < 0 ? n.i("axis") + x.rank() : n.i("axis");
  i64 outer = 1, inner = 1;
  for (i64 k = 0; k < axis; ++k) outer *= x.dims[k];
  for (i64 k = axis + 1; k < x.rank(); ++k) inner *= x.dims[k];
  RowLowering l(n, t);
  l.add(copy("copy", {x.numel()}, place(0, x.dtype, {1}),
             place(3, x.dtype, {1})));
  i64 size = u.dims[axis], run = size * inner, last = x.dims[axis] - size;
  i64 bytes = dtype_size(x.dtype), row = x.dims[axis] * inner;
  // Pieces that share a start.
  i64 rows = n.operand(2).type().rank() == 0 ? 1 : x.dims[0];
  i64 pieces = std::max<i64>(1, outer / std::max<i64>(1, rows));
  KernelSpec k;
  k.key = fmt::format("update_slice {} run {} of {} step {} last {} by {}",
                      dtype_name(x.dtype), run, row, inner, last, pieces);
  k.tasks = outer;
  k.bytes = 2.0 * double(u.bytes());
  DType dt = x.dtype;
  k.emit = [=](Emit& e) {
    V which = e.udiv(e.task(), e.i(pieces));
    V start = e.sext(e.load(DType::I32, e.at(e.buffer(2), which)), Ty::I64);
    start = e.min(e.max(start, e.i(0)), e.i(last));
    V from = e.at(e.buffer(1), e.mul(e.task(), run), bytes);
    V to = e.at(e.buffer(3), e.add(e.mul(e.task(), row), e.mul(start, inner)),
                bytes);
    i64 whole = run / e.lanes() * e.lanes();
    e.loop(e.i(0), e.i(whole), e.lanes(), [&](V c) {
      e.vstore(dt, e.vload(dt, e.at(from, c, bytes)), e.at(to, c, bytes));
    });
    if (whole == run) return;
    V mask = e.mask(e.i(run - whole));
    e.vstore(dt, e.vload(dt, e.at(from, whole, bytes), mask),
             e.at(to, whole, bytes), mask);
  };
  l.launch(std::move(k));
  Lowered out = l.take();
  out.launches[0].copy_of = 0;
  out.launches[0].copy_to = 0;
  return out;
}

}  // namespace moec
