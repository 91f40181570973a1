// Expert routing: the choice of experts, capacity slots, and the stable sort
// of choices by expert.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/row_emitter.h"

namespace moec {
namespace {

V load_index(Emit& e, DType t, V base, V at) {
  V i = e.load(t, e.at(base, at, dtype_size(t)));
  return t == DType::I64 ? i : e.sext(i, Ty::I64);
}

V bump(Emit& e, V p) {
  V old = e.load(DType::I32, p);
  e.store(DType::I32, e.add(old, e.i32(1)), p);
  return old;
}

void zero_words(Emit& e, V p, i64 count) {
  e.loop(e.i(0), e.i(count), 1,
         [&](V i) { e.store(DType::I32, e.i32(0), e.at(p, i)); });
}

// The largest entry after (last, last_at) in the order (descending value,
// ascending index), for one row.
class RowTop {
 public:
  RowTop(Emit& e, DType t, V row, i64 n)
      : e_(e),
        t_(t),
        row_(row),
        n_(n),
        w_(int(std::min<i64>(
            e.lanes(), i64(std::bit_ceil(uint64_t(std::max<i64>(4, n))))))) {
    vectors_ = int((n + w_ - 1) / w_);
    if (vectors_ <= 4)
      for (int v = 0; v < vectors_; ++v) held_.push_back(load(e.i(v * w_), v));
  }

  Vs next(V last, V last_at) {
    V low = e_.splat(e_.f(-std::numeric_limits<double>::infinity()), w_);
    V none = e_.splat(e_.i32(INT32_MAX), w_);
    Vs top = over({low}, [&](V x, V at, Vs a) {
      return Vs{e_.max(e_.select(after(x, at, last, last_at), x, low), a[0])};
    });
    V best = emit_horizontal(e_, Reduction::MaxNumber, DType::F32, top[0]);
    Vs where = over({none}, [&](V x, V at, Vs a) {
      V hit =
          e_.and_(after(x, at, last, last_at), e_.eq(x, e_.splat(best, w_)));
      return Vs{e_.min(e_.select(hit, at, none), a[0])};
    });
    V at = emit_horizontal(e_, Reduction::Min, DType::I32, where[0]);
    // A row of NaN has no largest entry: its last index stands for one.
    return {best, e_.min(at, e_.i32(n_ - 1))};
  }

 private:
  V load(V c, int v) {
    V mask = (v + 1) * w_ > n_ ? e_.mask(e_.i(n_ - v * w_), w_) : nullptr;
    V p = e_.at(row_, c, dtype_size(t_));
    V x = e_.vload(t_, p, mask, w_);
    // Lanes past the end never come after anything.
    V nan = e_.splat(e_.f(std::numeric_limits<double>::quiet_NaN()), w_);
    return mask ? e_.select(mask, x, nan) : x;
  }
  V indices(V c) {
    return e_.add(e_.splat(e_.trunc(c, Ty::I32), w_), e_.iota(Ty::I32, w_));
  }
  V after(V x, V at, V last, V last_at) {
    V less = e_.lt(x, e_.splat(last, w_));
    V tie =
        e_.and_(e_.eq(x, e_.splat(last, w_)), e_.gt(at, e_.splat(last_at, w_)));
    return e_.or_(less, tie);
  }
  Vs over(Vs acc, const std::function<Vs(V x, V at, Vs acc)>& f) {
    if (!held_.empty()) {
      for (int v = 0; v < vectors_; ++v)
        acc = f(held_[v], indices(e_.i(v * w_)), acc);
      return acc;
    }
    i64 whole = n_ / w_ * w_;
    acc = e_.loop(e_.i(0), e_.i(whole), w_, acc,
                  [&](V c, Vs a) { return f(load(c, 0), indices(c), a); });
    if (whole < n_)
      acc = f(load(e_.i(whole), vectors_ - 1), indices(e_.i(whole)), acc);
    return acc;
  }

  Emit& e_;
  DType t_;
  V row_;
  i64 n_;
  int w_, vectors_ = 0;
  Vs held_;
};

}  // namespace

Lowered lower_top_k(const Node& n, const Target& t) {
  const Type& x = n.operand(0).type();
  i64 count = n.i("k"), cols = x.dim(-1), rows = x.numel() / cols;
  i64 row_cost = count * (cols + 32);
  i64 per_task =
      std::max<i64>(1, task_elements(0.2, rows * row_cost) / row_cost);
  KernelSpec k;
  k.key = fmt::format("top_k {} {} of {} rows {} by {}", dtype_name(x.dtype),
                      count, cols, rows, per_task);
  k.tasks = (rows + per_task - 1) / per_task;
  k.bytes = double(x.bytes() + n.type(0).bytes() + n.type(1).bytes());
  DType dt = x.dtype;
  k.emit = [=](Emit& e) {
    V r0 = e.mul(e.task(), per_task);
    V r1 = e.min(e.add(r0, per_task), e.i(rows));
    V inf = e.f(std::numeric_limits<double>::infinity());
    e.loop(r0, r1, 1, [&](V r) {
      RowTop top(e, dt, e.at(e.buffer(0), e.mul(r, cols), dtype_size(dt)),
                 cols);
      e.loop(e.i(0), e.i(count), 1, {inf, e.i32(-1)}, [&](V j, Vs last) {
        Vs found = top.next(last[0], last[1]);
        V to = e.add(e.mul(r, count), j);
        e.store(dt, found[0], e.at(e.buffer(1), to, dtype_size(dt)));
        e.store(DType::I32, found[1], e.at(e.buffer(2), to));
        return found;
      });
    });
  };
  RowLowering l(n, t);
  l.launch(std::move(k));
  return l.take();
}

// Slots are granted in the order (position, row, choice); rows with slots of
// their own are tasks of their own.
Lowered lower_capacity_keep(const Node& n, const Target& t) {
  const Type& idx = n.operand(0).type();
  i64 experts = n.i("experts"), capacity = n.i("capacity");
  i64 rows = n.i("rows"), choices = idx.dims[1];
  i64 length = idx.dims[0] / rows;
  bool by_row = n.s("scope") == "row";
  KernelSpec k;
  k.key = fmt::format("capacity_keep {} {} experts {} slots {}x{}x{} {}",
                      dtype_name(idx.dtype), experts, capacity, rows, length,
                      choices, n.s("scope"));
  k.tasks = by_row ? rows : 1;
  k.scratch_bytes = (experts * 4 + 63) / 64 * 64;
  k.bytes = double(idx.bytes() + n.type().bytes());
  DType it = idx.dtype;
  k.emit = [=](Emit& e) {
    V used = e.scratch();
    zero_words(e, used, experts);
    auto choose = [&](V token) {
      e.loop(e.i(0), e.i(choices), 1, [&](V j) {
        V at = e.add(e.mul(token, choices), j);
        V expert = load_index(e, it, e.buffer(0), at);
        V keep = e.if_values(
            e.ult(expert, e.i(experts)),
            [&] {
              V p = e.at(used, expert);
              V count = e.load(DType::I32, p);
              V ok = e.lt(count, e.i32(capacity));
              e.store(DType::I32, e.add(count, e.zext(ok, Ty::I32)), p);
              return Vs{ok};
            },
            [&] { return Vs{e.i1(false)}; })[0];
        e.store(DType::Bool, keep, e.at(e.buffer(1), at, 1));
      });
    };
    if (by_row) {
      V first = e.mul(e.task(), length);
      e.loop(e.i(0), e.i(length), 1, [&](V i) { choose(e.add(first, i)); });
    } else {
      e.loop(e.i(0), e.i(length), 1, [&](V i) {
        e.loop(e.i(0), e.i(rows), 1,
               [&](V r) { choose(e.add(e.mul(r, length), i)); });
      });
    }
  };
  RowLowering l(n, t);
  l.launch(std::move(k));
  return l.take();
}

namespace {

struct Routing {
  i64 experts, choices, blocks, per_block;
  DType index;
  bool keeps;
  int offsets, perm, inv, tables;  // buffers

  std::string text() const {
    return fmt::format("{} {} of {} by {} keep {}", dtype_name(index), experts,
                       choices, per_block, keeps);
  }

  // f(choice, expert) for the choices of this task that have a slot;
  // otherwise g(choice).
  void each(Emit& e, const std::function<void(V, V)>& f,
            const std::function<void(V)>& g = nullptr) const {
    V first = e.mul(e.task(), per_block);
    V end = e.min(e.add(first, per_block), e.i(choices));
    e.loop(first, end, 1, [&](V c) {
      V expert = load_index(e, index, e.buffer(0), c);
      V ok = e.ult(expert, e.i(experts));
      if (keeps) ok = e.and_(ok, e.load(DType::Bool, e.at(e.buffer(1), c, 1)));
      if (g)
        e.if_(ok, [&] { f(c, expert); }, [&] { g(c); });
      else
        e.if_(ok, [&] { f(c, expert); });
    });
  }

  V table(Emit& e, V block) const {
    return e.at(e.buffer(tables), e.mul(block, experts));
  }
};

void emit_count(Emit& e, const Routing& r) {
  V counts = r.table(e, e.task());
  zero_words(e, counts, r.experts);
  r.each(e, [&](V, V expert) { bump(e, e.at(counts, expert)); });
}

// Counts become each block's first slot per expert.
void emit_offsets(Emit& e, const Routing& r) {
  V offsets = e.buffer(r.offsets);
  V total = e.loop(e.i(0), e.i(r.experts), 1, {e.i32(0)}, [&](V x, Vs sum) {
    e.store(DType::I32, sum[0], e.at(offsets, x));
    return e.loop(e.i(0), e.i(r.blocks), 1, sum, [&](V block, Vs at) {
      V p = e.at(r.table(e, block), x);
      V count = e.load(DType::I32, p);
      e.store(DType::I32, at[0], p);
      return Vs{e.add(at[0], count)};
    });
  })[0];
  e.store(DType::I32, total, e.at(offsets, r.experts));
  e.loop(e.sext(total, Ty::I64), e.i(r.choices), 1, [&](V slot) {
    e.store(DType::I32, e.i32(-1), e.at(e.buffer(r.perm), slot));
  });
}

void emit_place(Emit& e, const Routing& r) {
  V next = r.table(e, e.task());
  V perm = e.buffer(r.perm), inv = e.buffer(r.inv);
  r.each(
      e,
      [&](V c, V expert) {
        V slot = bump(e, e.at(next, expert));
        e.store(DType::I32, slot, e.at(inv, c));
        e.store(DType::I32, e.trunc(c, Ty::I32),
                e.at(perm, e.sext(slot, Ty::I64)));
      },
      [&](V c) { e.store(DType::I32, e.i32(-1), e.at(inv, c)); });
}

}  // namespace

Lowered lower_route(const Node& n, const Target& t) {
  int operands = n.num_operands();
  Routing r;
  r.experts = n.i("experts");
  r.choices = n.operand(0).type().numel();
  r.per_block = 4096;
  r.blocks = std::max<i64>(1, (r.choices + r.per_block - 1) / r.per_block);
  r.index = n.operand(0).type().dtype;
  r.keeps = operands > 1;
  r.offsets = operands;
  r.perm = operands + 1;
  r.inv = operands + 2;
  RowLowering l(n, t);
  r.tables = l.workspace(DType::I32, r.blocks * r.experts).buffer;
  auto launch = [&](const char* name, i64 tasks,
                    void (*emit)(Emit&, const Routing&)) {
    KernelSpec k;
    k.key = fmt::format("{} {}", name, r.text());
    k.tasks = tasks;
    k.bytes = 8.0 * double(r.choices);
    k.emit = [r, emit](Emit& e) { emit(e, r); };
    l.launch(std::move(k));
  };
  launch("route_count", r.blocks, emit_count);
  launch("route_offsets", 1, emit_offsets);
  launch("route_place", r.blocks, emit_place);
  return l.take();
}

}  // namespace moec
