// Sums by index: every row of the result has one owner, which adds its
// updates in index order, so the bits are those of the serial loop.
#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/row_emitter.h"
#include "codegen/cpu/scalar_emit.h"
#include "ir/op_def.h"

namespace moec {
namespace {

i64 row_size(const Type& t, i64 from) {
  i64 n = 1;
  for (i64 k = from; k < t.rank(); ++k) n *= t.dims[k];
  return n;
}

V load_index(Emit& e, DType t, V base, V at) {
  V i = e.load(t, e.at(base, at, dtype_size(t)));
  return t == DType::I64 ? i : e.sext(i, Ty::I64);
}

// Calls body(c, vectors, mask) for stripes of the columns [0, cols).
void for_stripes(Emit& e, i64 cols, int width,
                 const std::function<void(V c, int vectors, V mask)>& body) {
  i64 main = cols / (4 * width) * (4 * width), end = cols / width * width;
  if (main)
    e.loop(e.i(0), e.i(main), 4 * width, [&](V c) { body(c, 4, nullptr); });
  if (end > main)
    e.loop(e.i(main), e.i(end), width, [&](V c) { body(c, 1, nullptr); });
  if (end < cols) body(e.i(end), 1, e.mask(e.i(cols - end), width));
}

// y[columns] = sum over i in [first, end) of x[row(i)][columns].
void sum_rows(Emit& e, DType t, i64 cols, V x, V y, V first, V end,
              const std::function<V(V i)>& row) {
  const i64 size = dtype_size(t);
  V zero = emit_constant(e, register_dtype(t), 0);
  for_stripes(e, cols, e.lanes(), [&](V c, int vectors, V mask) {
    Vs acc(vectors, e.splat(zero));
    acc = e.loop(first, end, 1, acc, [&](V i, Vs a) {
      V p = e.at(x, e.add(e.mul(row(i), cols), c), size);
      for (int k = 0; k < vectors; ++k)
        a[k] = e.add(a[k], e.vload(t, e.at(p, k * e.lanes(), size), mask));
      return a;
    });
    V p = e.at(y, c, size);
    for (int k = 0; k < vectors; ++k)
      e.vstore(t, acc[k], e.at(p, k * e.lanes(), size), mask);
  });
}

// Stable counting sort of the indices: offsets i32[rows + 1], order i32[n].
// Indices outside [0, rows) are left out.
KernelSpec counting_sort(DType t, i64 n, i64 rows, Access offsets, Access order,
                         int index, int workspace) {
  KernelSpec k;
  k.key = fmt::format("counting_sort {} {} of {} to {} {}", dtype_name(t), n,
                      rows, offsets.offset, order.offset);
  k.bytes = double(n) * 12 + double(rows) * 8;
  k.emit = [=](Emit& e) {
    V idx = e.buffer(index), ws = e.buffer(workspace);
    // Counts stand at offsets[row + 2], so that after the prefix sum
    // offsets[row + 1] is where the next of that row goes.
    V off = e.at(ws, offsets.offset), ord = e.at(ws, order.offset);
    e.loop(e.i(0), e.i(rows + 2), 1,
           [&](V r) { e.store(DType::I32, e.i32(0), e.at(off, r)); });
    auto each = [&](V i, const std::function<void(V row)>& f) {
      V row = load_index(e, t, idx, i);
      e.if_(e.ult(row, e.i(rows)), [&] { f(row); });
    };
    auto bump = [&](V p) {
      V old = e.load(DType::I32, p);
      e.store(DType::I32, e.add(old, e.i32(1)), p);
      return old;
    };
    e.loop(e.i(0), e.i(n), 1, [&](V i) {
      each(i, [&](V row) { bump(e.at(off, e.add(row, 2))); });
    });
    e.loop(e.i(1), e.i(rows + 1), 1, {e.i32(0)}, [&](V r, Vs sum) {
      V p = e.at(off, r);
      V s = e.add(sum[0], e.load(DType::I32, p));
      e.store(DType::I32, s, p);
      return Vs{s};
    });
    e.loop(e.i(0), e.i(n), 1, [&](V i) {
      each(i, [&](V row) {
        V slot = bump(e.at(off, e.add(row, 1)));
        e.store(DType::I32, e.trunc(i, Ty::I32),
                e.at(ord, e.sext(slot, Ty::I64)));
      });
    });
  };
  return k;
}

}  // namespace

Lowered lower_scatter_add(const Node& n, const Target& t) {
  const Type &idx = n.operand(0).type(), &u = n.operand(1).type();
  i64 count = idx.numel(), rows = n.i("rows"), cols = row_size(u, idx.rank());
  RowLowering l(n, t);
  Access offsets = l.workspace(DType::I32, rows + 2);
  Access order = l.workspace(DType::I32, std::max<i64>(1, count));
  l.launch(counting_sort(idx.dtype, count, rows, offsets, order, 0, 3));
  i64 elements = rows * cols + count * cols;
  i64 per_task = std::max<i64>(
      1, task_elements(0.15, elements) / std::max<i64>(1, elements / rows));
  KernelSpec k;
  k.key = fmt::format("scatter_add {} {} rows of {} by {} from {} {}",
                      dtype_name(u.dtype), rows, cols, per_task, offsets.offset,
                      order.offset);
  k.tasks = (rows + per_task - 1) / per_task;
  k.bytes = double(elements * dtype_size(u.dtype));
  DType dt = u.dtype;
  k.emit = [=](Emit& e) {
    V off = e.at(e.buffer(3), offsets.offset);
    V ord = e.at(e.buffer(3), order.offset);
    V x = e.buffer(1), y = e.buffer(2);
    V r0 = e.mul(e.task(), per_task);
    V r1 = e.min(e.add(r0, per_task), e.i(rows));
    e.loop(r0, r1, 1, [&](V r) {
      V first = e.sext(e.load(DType::I32, e.at(off, r)), Ty::I64);
      V end = e.sext(e.load(DType::I32, e.at(off, e.add(r, 1))), Ty::I64);
      sum_rows(e, dt, cols, x, e.at(y, e.mul(r, cols), dtype_size(dt)), first,
               end, [&](V i) {
                 return e.sext(e.load(DType::I32, e.at(ord, i)), Ty::I64);
               });
    });
  };
  l.launch(std::move(k));
  return l.take();
}

Lowered lower_segment_sum(const Node& n, const Target& t) {
  const Type &x = n.operand(0).type(), &y = n.type();
  i64 segments = y.dims[0], cols = row_size(x, 1), rows = x.dims[0];
  KernelSpec k;
  k.key = fmt::format("segment_sum {} {} segments of {}x{}",
                      dtype_name(x.dtype), segments, rows, cols);
  k.tasks = segments;
  k.bytes = double(x.bytes() + y.bytes());
  DType dt = x.dtype;
  k.emit = [=](Emit& e) {
    auto offset = [&](V s) {
      V o = e.sext(e.load(DType::I32, e.at(e.buffer(1), s)), Ty::I64);
      return e.min(e.max(o, e.i(0)), e.i(rows));
    };
    V s = e.task();
    sum_rows(e, dt, cols, e.buffer(0),
             e.at(e.buffer(2), e.mul(s, cols), dtype_size(dt)), offset(s),
             offset(e.add(s, 1)), [](V i) { return i; });
  };
  RowLowering l(n, t);
  l.launch(std::move(k));
  return l.take();
}

Lowered lower_put_along(const Node& n, const Target& t) {
  const Type &idx = n.operand(0).type(), &v = n.operand(1).type(),
             &y = n.type();
  i64 k_count = idx.dim(-1), size = y.dim(-1);
  i64 rows = 1;
  for (i64 k = 0; k + 1 < y.rank(); ++k) rows *= y.dims[k];
  i64 row_cost = 2 * k_count * 16 + size;  // in elements of a plain copy
  i64 per_task =
      std::max<i64>(1, task_elements(0.1, rows * row_cost) / row_cost);
  KernelSpec k;
  k.key = fmt::format("put_along {} {} rows {} into {} by {}",
                      dtype_name(idx.dtype), dtype_name(v.dtype), k_count, size,
                      per_task) +
          fmt::format(" of {}", rows);
  k.tasks = (rows + per_task - 1) / per_task;
  k.bytes = double(idx.bytes() + v.bytes() + y.bytes());
  DType it = idx.dtype, dt = v.dtype;
  k.emit = [=](Emit& e) {
    const i64 bytes = dtype_size(dt);
    V r0 = e.mul(e.task(), per_task);
    V r1 = e.min(e.add(r0, per_task), e.i(rows));
    V zero = e.splat(emit_constant(e, register_dtype(dt), 0));
    e.loop(r0, r1, 1, [&](V r) {
      V row = e.at(e.buffer(2), e.mul(r, size), bytes);
      for_stripes(e, size, e.lanes(), [&](V c, int vectors, V mask) {
        for (int k = 0; k < vectors; ++k)
          e.vstore(dt, zero, e.at(row, e.add(c, k * e.lanes()), bytes), mask);
      });
      e.loop(e.i(0), e.i(k_count), 1, [&](V j) {
        V from = e.add(e.mul(r, k_count), j);
        V at = load_index(e, it, e.buffer(0), from);
        e.if_(e.ult(at, e.i(size)), [&] {
          V p = e.at(row, at, bytes);
          V x = e.load(dt, e.at(e.buffer(1), from, bytes));
          e.store(dt, e.add(e.load(dt, p), x), p);
        });
      });
    });
  };
  RowLowering l(n, t);
  l.launch(std::move(k));
  return l.take();
}

// Blocks count into tables of their own, which are then added.
Lowered lower_bincount(const Node& n, const Target& t) {
  const Type& idx = n.operand(0).type();
  i64 count = idx.numel(), size = n.i("size");
  i64 blocks = std::clamp<i64>(count / 8192, 1, 32);
  i64 per_block = (count + blocks - 1) / blocks;
  RowLowering l(n, t);
  Access tables;
  if (blocks > 1) tables = l.workspace(DType::I32, blocks * size);
  KernelSpec k;
  k.key = fmt::format("bincount {} {} into {} by {}", dtype_name(idx.dtype),
                      count, size, per_block);
  k.tasks = blocks;
  k.bytes = double(idx.bytes());
  DType it = idx.dtype;
  k.emit = [=](Emit& e) {
    V table = e.at(e.buffer(blocks > 1 ? 2 : 1), e.mul(e.task(), size));
    e.loop(e.i(0), e.i(size), 1,
           [&](V i) { e.store(DType::I32, e.i32(0), e.at(table, i)); });
    V first = e.mul(e.task(), per_block);
    V end = e.min(e.add(first, per_block), e.i(count));
    e.loop(first, end, 1, [&](V i) {
      V at = load_index(e, it, e.buffer(0), i);
      e.if_(e.ult(at, e.i(size)), [&] {
        V p = e.at(table, at);
        e.store(DType::I32, e.add(e.load(DType::I32, p), e.i32(1)), p);
      });
    });
  };
  l.launch(std::move(k));
  if (blocks == 1) return l.take();
  RowProgram p;
  p.label = "bincount_sum";
  p.dims = {blocks, size};
  Expr load;
  load.dtype = DType::I32;
  load.access = tables;
  load.access.strides = {size, 1};
  RowStore s;
  s.kind = StoreKind::Column;
  s.value = p.add(std::move(load));
  s.to.buffer = 1;
  s.to.dtype = DType::I32;
  s.to.strides = {0, 1};
  p.stores.push_back(std::move(s));
  l.add(std::move(p));
  return l.take();
}

}  // namespace moec
