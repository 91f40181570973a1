// Packing of operands into units of 4 bytes: f32, or pairs of bf16 along k, of
// f32 in three planes (split_f32.h).
#include <algorithm>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/matmul_plan.h"
#include "codegen/cpu/split_f32.h"
#include "codegen/cpu/target.h"

namespace moec {

namespace {

// Cache lines on their way to L2; the hardware's prefetcher stops at page ends,
// and those on their way to L1 are too few to hide the last cache's latency.
constexpr int64_t kLinesAhead = 64;

struct Pack {
  Emit& e;
  const MatmulOperand& o;
  const bool bf16;  // pairs
  const int planes;
  // Elements between neighbours along k and across.
  const int64_t along, across;
  const int L, size;

  Pack(Emit& e, const MatmulOperand& o, const MatmulPlan& p, bool bf16,
       bool is_a)
      : e(e),
        o(o),
        bf16(bf16),
        planes(p.planes),
        along(is_a ? o.col_stride : o.row_stride),
        across(is_a ? o.row_stride : o.col_stride),
        L(e.lanes()),
        size(int(dtype_size(o.dtype))) {}

  V element(V base, V index) { return e.at(base, index, size); }
  V steps(V kk) { return bf16 ? e.lshr(e.add(kk, 1), e.i(1)) : kk; }

  // `plane`: units between planes.
  void store(const Vs& units, V p, int64_t plane, int align) {
    store_planes(e, units, p, 4 * plane, align);
  }

  // L units of one step from k line `p`; `q` is the next line, null if absent.
  Vs units_across(V p, V q, V mask) {
    if (!bf16) return {e.vload(o.dtype, p, mask, L)};
    if (o.dtype == DType::BF16) {
      V lo = e.zext(e.load_raw(Ty::I16, p, L, 2, mask), Ty::I32);
      if (!q) return {lo};
      V hi = e.zext(e.load_raw(Ty::I16, q, L, 2, mask), Ty::I32);
      return {e.or_(lo, e.shl(hi, e.i32(16)))};
    }
    V lo = e.vload(o.dtype, p, mask, L);
    V hi = q ? e.vload(o.dtype, q, mask, L) : e.zero(Ty::F32, L);
    if (planes > 1) return split_pair(e, lo, hi);
    return {e.pack_bf16_pair(lo, hi)};
  }

  // L consecutive steps along k, contiguous in memory.
  V units_along(V p) {
    if (!bf16) return e.vload(o.dtype, p, nullptr, L);
    if (o.dtype == DType::BF16) return e.load_raw(Ty::I32, p, L, 2);
    V lo = e.to_bf16(e.vload(o.dtype, p, nullptr, L));
    V hi = e.to_bf16(e.vload(o.dtype, element(p, e.i(L)), nullptr, L));
    return e.revector(e.concat(lo, hi), Ty::I32);
  }

  // One unit from single elements; `has_second` as in units_across.
  Vs unit(V p, V has_second) {
    if (!bf16) return {e.load(o.dtype, p)};
    if (planes > 1) {
      V next = e.if_values(
          has_second,
          [&] { return Vs{e.load(o.dtype, element(p, e.i(along)))}; },
          [&] { return Vs{e.f(0)}; })[0];
      return split_pair(e, e.load(o.dtype, p), next);
    }
    V lo = e.zext(e.to_bf16(e.load(o.dtype, p)), Ty::I32);
    V hi = e.if_values(
        has_second,
        [&] {
          V v = e.load(o.dtype, element(p, e.i(along)));
          return Vs{e.zext(e.to_bf16(v), Ty::I32)};
        },
        [&] { return Vs{e.i32(0)}; })[0];
    return {e.or_(lo, e.shl(hi, e.i32(16)))};
  }

  // Lines of constant k are contiguous: copy or interleave them.
  // `each` calls its argument with (column, mask or null) for all vectors of a
  // line, which has about `width` elements.
  using PutVector = std::function<void(V step, V col, const Vs& units)>;
  using EachVector =
      std::function<void(const std::function<void(V col, V mask)>&)>;
  void lines(V src, V kk, int64_t width, const EachVector& each,
             const PutVector& put) {
    const int64_t ahead = std::max<int64_t>(kLinesAhead * 16 / width, 1);
    auto line = [&](V step, V k, bool second) {
      V p = element(src, e.mul(k, along));
      V q = second ? element(p, e.i(along)) : nullptr;
      each([&](V col, V mask) {
        e.prefetch(element(element(p, e.i(ahead * along)), col), 2);
        put(step, col,
            units_across(element(p, col), q ? element(q, col) : nullptr, mask));
      });
    };
    if (!bf16) return e.loop(e.i(0), kk, 1, [&](V k) { line(k, k, false); });
    V pairs = e.lshr(kk, e.i(1));
    e.loop(e.i(0), pairs, 1, [&](V s) { line(s, e.mul(s, 2), true); });
    e.if_(e.ne(e.and_(kk, e.i(1)), e.i(0)),
          [&] { line(pairs, e.mul(pairs, 2), false); });
  }

  // One lanes x lanes block: `cols` columns from src become L steps at dst.
  // A function of its own, since the shuffles are slow to compile.
  Fn transposed_block(int64_t cols, int64_t pitch) {
    return e.define(
        "block" + std::to_string(cols), {Ty::Ptr, Ty::Ptr}, [&](const Vs& a) {
          Vs rows;
          for (int64_t c = 0; c < L; ++c)
            rows.push_back(c < cols
                               ? units_along(element(a[0], e.i(c * across)))
                               : e.zero(bf16 ? Ty::I32 : Ty::F32, L));
          rows = e.transpose(rows);
          for (int r = 0; r < L; ++r)
            e.store_raw(rows[r], e.at(a[1], r * pitch), 4 * L);
        });
  }

  // Runs of k are contiguous: transpose blocks in registers. The last block
  // overlaps the one before it, so nothing needs a mask.
  void transposed(V src, V dst, V kk, int64_t pitch, int64_t cols) {
    if (planes > 1) return transposed_planes(src, dst, kk, pitch, cols);
    V n = steps(kk), last = e.sub(n, e.i(L));
    const int64_t whole = cols / L * L;
    e.loop(e.i(0), n, L, [&](V block) {
      V step = e.min(block, last);
      V s = element(src, e.mul(step, bf16 ? 2 : 1));
      V t = e.at(dst, e.mul(step, pitch));
      for (int64_t g = 0; g < cols; g += L)
        e.call(transposed_block(g < whole ? L : cols - whole, pitch),
               {element(s, e.i(g * across)), e.at(t, g)});
    });
  }

  // Calls block(src, stride, dst), which turns `lines` lines of `width`
  // elements, `stride` elements apart; of the lines and elements there are so
  // many left. What is not whole is completed by zeros in a place of its own.
  void call_block(Fn block, int lines, int width, V src, int64_t stride,
                  V lines_left, V left, V dst) {
    std::vector<Ty> params = {Ty::Ptr, Ty::I64, Ty::I64, Ty::Ptr};
    const std::string name = "part" + std::to_string(lines);
    Fn part = e.define(name, params, [&](const Vs& a) {
      V room = e.local(int64_t(lines) * width * size);
      e.loop(e.i(0), e.i(lines), 1, [&](V line) {
        for (int at = 0; at < width; at += L) {
          V mask =
              e.and_(e.mask(e.add(a[2], -at), L), e.splat(e.lt(line, a[1]), L));
          V p = element(a[0], e.add(e.mul(line, stride), at));
          e.vstore(o.dtype, e.vload(o.dtype, p, mask, L),
                   element(room, e.add(e.mul(line, width), at)));
        }
      });
      e.call(block, {room, e.i(width), a[3]});
    });
    e.if_(
        e.and_(e.ge(lines_left, e.i(lines)), e.ge(left, e.i(width))),
        [&] { e.call(block, {src, e.i(stride), dst}); },
        [&] { e.call(part, {src, lines_left, left, dst}); });
  }

  // The same in planes, by blocks of 2 L elements along k that end in zeros.
  void transposed_planes(V src, V dst, V kk, int64_t pitch, int64_t cols) {
    Fn split = e.define("split", {Ty::Ptr, Ty::I64, Ty::Ptr}, [&](const Vs& a) {
      e.loop(e.i(0), e.i(2 * L), L, [&](V first) {
        V from = element(a[0], first), to = e.at(a[2], e.mul(first, pitch / 2));
        Vs x;
        for (int c = 0; c < L; ++c)
          x.push_back(e.vload(o.dtype, element(from, e.mul(a[1], c))));
        x = e.transpose(x);
        for (int r = 0; r < L; r += 2)
          store(split_pair(e, x[r], x[r + 1]), e.at(to, r / 2 * pitch),
                L * pitch, 4 * L);
      });
    });
    e.loop(e.i(0), kk, 2 * L, [&](V k) {
      V t = e.at(dst, e.mul(k, pitch * planes / 2)), left = e.sub(kk, k);
      for (int64_t g = 0; g < cols; g += L)
        call_block(split, L, 2 * L, element(src, e.add(k, g * across)), across,
                   e.i(cols - g), left, e.at(t, g));
    });
  }

  // Anything: short reductions, odd k, doubly strided operands. `plane`: units
  // between planes.
  void elements(V src, V kk, V cols,
                const std::function<V(V step, V col)>& place,
                int64_t plane = 0) {
    e.loop(e.i(0), steps(kk), 1, [&](V step) {
      V k = bf16 ? e.mul(step, 2) : step;
      V s = element(src, e.mul(k, along));
      V second = e.lt(e.add(k, 1), kk);
      e.loop(e.i(0), cols, 1, [&](V c) {
        store(unit(element(s, e.mul(c, across)), second), place(step, c), plane,
              0);
      });
    });
  }

  // A's tiles of 32 rows by 16 steps, strips of them `pitch` apart: the place
  // of a row's element.
  V in_tiles(V dst, V row, V step, int64_t pitch) {
    V strip = e.at(dst, e.mul(e.lshr(row, e.i(5)), pitch));
    V tile = e.at(strip, e.mul(e.lshr(step, e.i(4)), planes * kTileUnits));
    V line = e.at(tile, e.mul(e.and_(row, e.i(31)), 16));
    return e.at(line, e.and_(step, e.i(15)));
  }

  // Rows that are contiguous; they end in zeros up to a multiple of 2 lanes.
  void tiles(V src, V dst, V kk, int64_t pitch, V count) {
    V whole = e.and_(kk, e.i(-2 * L));
    // a strip's tiles one after the other: rows lie far apart in them
    auto block = [&](V k, V first, V mask) {
      V end = e.min(e.add(first, 2 * L), count);
      e.loop(first, end, 1, [&](V r) {
        V s = element(src, e.add(e.mul(r, across), k));
        auto half = [&](int from) {
          V part = mask ? e.slice(mask, from, L) : nullptr;
          return e.vload(o.dtype, element(s, e.i(from)), part, L);
        };
        V to = in_tiles(dst, r, e.lshr(k, e.i(1)), pitch);
        if (planes > 1)
          store(split_row(e, half(0), half(L)), to, kTileUnits, 4 * L);
        else
          e.store_raw(o.dtype == DType::BF16
                          ? e.load_raw(Ty::I16, s, 2 * L, 2, mask)
                          : e.to_bf16(half(0), half(L)),
                      to, 4 * L);
      });
    };
    e.loop(e.i(0), count, 2 * L, [&](V first) {
      e.loop(e.i(0), whole, 2 * L, [&](V k) { block(k, first, nullptr); });
      e.if_(e.lt(whole, kk),
            [&] { block(whole, first, e.mask(e.sub(kk, whole), 2 * L)); });
    });
  }

  // The same from lines of constant k: pairs of lines, turned in registers.
  void turned_tiles(V src, V dst, V kk, int64_t pitch, V count) {
    Fn turn = e.define("turn", {Ty::Ptr, Ty::I64, Ty::Ptr}, [&](const Vs& a) {
      if (planes > 1)
        return split_turned(
            e,
            [&](V first, int k) {
              V line = element(a[0], e.mul(a[1], first));
              return e.vload(o.dtype, element(line, e.mul(a[1], k)));
            },
            [&](V r, const Vs& row) {
              store(row, e.at(a[2], e.mul(r, 16)), kTileUnits, 4 * L);
            });
      auto line = [&](int k) { return element(a[0], e.mul(a[1], k)); };
      Vs x;
      for (int k = 0; k < 2 * L; k += 2)
        x.push_back(units_across(line(k), line(k + 1), nullptr)[0]);
      x = e.transpose(x);
      for (int r = 0; r < L; ++r) e.store_raw(x[r], e.at(a[2], r * 16), 4 * L);
    });
    // a whole line of the cache before the next pair of lines
    e.loop(e.i(0), kk, 2 * L, [&](V k) {
      e.loop(e.i(0), count, L, [&](V row) {
        call_block(turn, 2 * L, L, element(src, e.add(e.mul(k, along), row)),
                   along, e.sub(kk, k), e.sub(count, row),
                   in_tiles(dst, row, e.lshr(k, e.i(1)), pitch));
      });
    });
  }

  // Contiguous rows converted in place: [row][step]; k even, >= 2 lanes.
  void rows(V src, V dst, V kk, int64_t pitch, V count) {
    V n = steps(kk), last = e.sub(n, e.i(L));
    e.loop(e.i(0), count, 1, [&](V r) {
      V s = element(src, e.mul(r, across));
      V t = e.at(dst, e.mul(r, pitch));
      e.loop(e.i(0), n, L, [&](V block) {
        V step = e.min(block, last);
        e.store_raw(units_along(element(s, e.mul(step, 2))), e.at(t, step));
      });
    });
  }
};

// Elements of the shortest k block, 0 if known only at run time.
int64_t shortest_k(const MatmulDesc& d, const MatmulPlan& p) {
  if (p.workspace_b) return d.k;  // packed as one
  if (d.group == MatmulGroup::Reduction) return 0;
  return d.k % p.block_k ? d.k % p.block_k : d.k ? p.block_k : 0;
}

}  // namespace

Fn define_pack_b(Emit& e, const MatmulDesc& d, const MatmulPlan& p,
                 int64_t cols) {
  return e.define(
      "pack_b" + std::to_string(cols), {Ty::Ptr, Ty::Ptr, Ty::I64},
      [&](const Vs& a) {
        Pack pack(e, d.b, p, d.bf16 || p.planes > 1, false);
        const int64_t L = e.lanes(), plane = 16 * p.panel;
        auto place = [&](V step, V col) {
          V line = e.mul(step, p.panel);
          if (p.planes > 1)  // planes of 16 steps
            line = e.add(
                line, e.mul(e.and_(step, e.i(-16)), (p.planes - 1) * p.panel));
          return e.at(e.at(a[1], line), col);
        };
        if (p.pairs)  // zeros up to whole tiles along k
          e.loop(pack.steps(a[2]),
                 e.and_(e.add(pack.steps(a[2]), 15), e.i(-16)), 1, [&](V step) {
                   for (int64_t c = 0; c < p.panel; c += L)
                     pack.store(Vs(p.planes, e.zero(Ty::I32, int(L))),
                                place(step, e.i(c)), plane, int(4 * L));
                 });
        if (d.b.col_stride == 1)
          return pack.lines(
              a[0], a[2], p.panel,
              [&](auto& vector) {
                for (int64_t c = 0; c < cols; c += L)
                  vector(e.i(c),
                         c + L <= cols ? nullptr : e.mask(e.i(cols - c)));
              },
              [&](V step, V col, const Vs& units) {
                pack.store(units, place(step, col), plane, int(4 * L));
              });
        const int64_t k = shortest_k(d, p);
        const bool blocks = p.planes > 1 ? true
                            : d.bf16     ? k >= 2 * L && d.k % 2 == 0
                                         : k >= L;
        if (d.b.row_stride == 1 && blocks)
          return pack.transposed(a[0], a[1], a[2], p.panel, cols);
        pack.elements(a[0], a[2], e.i(cols), place, plane);
      });
}

namespace {

// Lines of constant k are packed by tasks of so many columns and steps: few
// lines of many columns at a time, since they are far apart in memory.
constexpr int64_t kPackColumns = 256, kPackK = 512, kPackLines = 32;

// Panels of one packing task, and elements of k.
struct PackTask {
  int64_t panels, k;
};
PackTask pack_task(const MatmulDesc& d, const MatmulPlan& p) {
  if (d.b.col_stride != 1) return {1, d.k};
  return {std::max<int64_t>(kPackColumns / p.panel, 1), kPackK};
}

int64_t pack_tasks_b(const MatmulDesc& d, const MatmulPlan& p) {
  if (!p.workspace_b) return 0;
  const PackTask t = pack_task(d, p);
  return ceil_div(ceil_div(d.n, p.panel), t.panels) * ceil_div(d.k, t.k);
}

void emit_pack_b(Emit& e, const MatmulDesc& d, const MatmulPlan& p) {
  const PackTask t = pack_task(d, p);
  const int64_t whole = d.n / p.panel, tail = d.n % p.panel;
  const int64_t parts = ceil_div(d.k, t.k);
  V first = e.mul(e.udiv(e.task(), e.i(parts)), t.panels);
  V begin = e.mul(e.urem(e.task(), e.i(parts)), t.k);
  V end = e.min(e.add(begin, t.k), e.i(d.k));
  auto pack = [&](V index, int64_t cols, V k, V kk) {
    V column = e.mul(index, p.panel * d.b.col_stride);
    V at = e.add(e.add(column, d.b.offset), e.mul(k, d.b.row_stride));
    V line = p.pairs ? e.mul(k, p.planes * p.panel / 2) : e.mul(k, p.panel);
    V to = e.add(e.mul(index, p.b_pitch), line);
    e.call(define_pack_b(e, d, p, cols),
           {e.at(e.buffer(d.b.buffer), at, dtype_size(d.b.dtype)),
            e.at(e.buffer(p.workspace), to), kk});
  };
  const int64_t lines = t.k == d.k ? d.k : kPackLines;
  e.loop(begin, end, lines, [&](V k) {
    V kk = e.min(e.sub(end, k), e.i(lines));
    V last = e.add(first, t.panels);
    if (whole)
      e.loop(first, e.min(last, e.i(whole)), 1,
             [&](V index) { pack(index, p.panel, k, kk); });
    if (tail)
      e.if_(e.gt(last, e.i(whole)), [&] { pack(e.i(whole), tail, k, kk); });
  });
}

void emit_pack_a(Emit& e, const MatmulDesc& d, const MatmulPlan& p, V task) {
  const int64_t parts = ceil_div(d.k, kPackK);
  V row = e.mul(e.udiv(task, e.i(parts)), kPackColumns);
  V k = e.mul(e.urem(task, e.i(parts)), kPackK);
  V at = e.add(e.mul(row, d.a.row_stride), e.mul(k, d.a.col_stride));
  V to = e.add(e.mul(e.lshr(row, e.i(5)), p.a_pitch),
               e.mul(e.lshr(k, e.i(5)), p.planes * kTileUnits));
  V workspace = e.at(e.buffer(p.workspace), p.workspace_a_offset, 1);
  e.call(
      define_pack_pairs(e, d, p),
      {e.at(e.buffer(d.a.buffer), e.add(at, d.a.offset), dtype_size(d.a.dtype)),
       e.at(workspace, to), e.min(e.sub(e.i(d.k), k), e.i(kPackK)),
       e.min(e.sub(e.i(d.m), row), e.i(kPackColumns))});
}

}  // namespace

int64_t matmul_pack_tasks(const MatmulDesc& d, const MatmulPlan& p) {
  int64_t tasks = pack_tasks_b(d, p);
  if (p.workspace_a)
    tasks += ceil_div(d.m, kPackColumns) * ceil_div(d.k, kPackK);
  return tasks;
}

void emit_matmul_pack(Emit& e, const MatmulDesc& d, const MatmulPlan& p) {
  const int64_t before = pack_tasks_b(d, p);
  auto a = [&] { emit_pack_a(e, d, p, e.sub(e.task(), e.i(before))); };
  if (!p.workspace_a) return emit_pack_b(e, d, p);
  if (!before) return a();
  e.if_(e.lt(e.task(), e.i(before)), [&] { emit_pack_b(e, d, p); }, a);
}

Fn define_pack_pairs(Emit& e, const MatmulDesc& d, const MatmulPlan& p) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64};
  return e.define("pack_pairs", params, [&](const Vs& a) {
    Pack pack(e, d.a, p, true, true);
    if (d.a.col_stride == 1)
      return pack.tiles(a[0], a[1], a[2], p.a_pitch, a[3]);
    if (d.a.row_stride == 1)
      return pack.turned_tiles(a[0], a[1], a[2], p.a_pitch, a[3]);
    auto place = [&](V step, V row) {
      return pack.in_tiles(a[1], row, step, p.a_pitch);
    };
    V steps = pack.steps(a[2]);
    e.loop(e.i(0), a[3], 1, [&](V row) {
      e.loop(steps, e.and_(e.add(steps, 15), e.i(-16)), 1, [&](V s) {
        pack.store(Vs(p.planes, e.i32(0)), place(s, row), kTileUnits, 0);
      });
    });
    pack.elements(a[0], a[2], a[3], place, kTileUnits);
  });
}

Fn define_pack_a(Emit& e, const MatmulDesc& d, const MatmulPlan& p) {
  return e.define(
      "pack_a", {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64}, [&](const Vs& a) {
        Pack pack(e, d.a, p, d.bf16, true);
        const int L = e.lanes();
        if (p.a == MatmulPlan::A::Rows)
          return pack.rows(a[0], a[1], a[2], p.a_pitch, a[3]);
        const int tall = p.heights[0];
        auto place = [&](V step, V row) {
          V tile = e.at(a[1], e.mul(e.udiv(row, e.i(tall)), p.a_pitch));
          return e.at(e.at(tile, e.mul(step, tall)), e.urem(row, e.i(tall)));
        };
        if (d.a.row_stride != 1 || L % tall)
          return pack.elements(a[0], a[2], a[3], place);
        V whole = e.and_(a[3], e.i(-L));
        V rest = e.sub(a[3], whole);
        pack.lines(
            a[0], a[2], p.block_m,
            [&](auto& vector) {
              e.loop(e.i(0), whole, L, [&](V c) { vector(c, nullptr); });
              e.if_(e.gt(rest, e.i(0)), [&] { vector(whole, e.mask(rest)); });
            },
            [&](V step, V row, const Vs& units) {
              for (int r = 0; r < L; r += tall)
                e.store_raw(e.slice(units[0], r, tall),
                            place(step, e.add(row, r)), 4 * tall);
            });
      });
}

}  // namespace moec
