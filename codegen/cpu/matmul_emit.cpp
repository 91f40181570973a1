// The body of a matmul kernel: task -> block, packing, register tiles.
#include <functional>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/matmul_plan.h"
#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/target.h"
#include "support/error.h"

namespace moec {

namespace {

// Steps of the reduction from the fetch of a line of A to its use: the latency
// of the last cache at 8 cycles a step.
constexpr int64_t kAhead = 32;
constexpr int64_t kLine = 64;  // bytes

// Everything a tile needs; passed on to the tile functions as arguments.
struct Body {
  Emit& e;
  const MatmulDesc& d;
  const MatmulPlan& p;
  const int L;
  // How tiles read A, in bytes: per step of the reduction and per row.
  int64_t a_step, a_row;
  DType a_dtype;

  Body(Emit& e, const MatmulDesc& d, const MatmulPlan& p)
      : e(e), d(d), p(p), L(e.lanes()), a_dtype(DType::F32) {
    const int64_t size = dtype_size(d.a.dtype);
    switch (p.a) {
      case MatmulPlan::A::Direct:
        a_step = d.a.col_stride * size * (d.bf16 ? 2 : 1);
        a_row = d.a.row_stride * size;
        a_dtype = d.a.dtype;
        break;
      case MatmulPlan::A::Tiles: a_step = 4 * p.heights[0], a_row = 4; break;
      case MatmulPlan::A::Rows: a_step = 4, a_row = 4 * p.a_pitch; break;
    }
  }

  V element(V base, const MatmulOperand& o, V row, V col) {
    V index = e.add(e.mul(row, o.row_stride), e.mul(col, o.col_stride));
    return e.at(base, index, dtype_size(o.dtype));
  }

  // A vector of an m x n operand; absent columns read 0.
  V load_vector(const MatmulOperand& o, V p, V mask) {
    if (o.col_stride == 0) return e.splat(e.load(o.dtype, p));
    if (o.col_stride == 1) return e.vload(o.dtype, p, mask, L);
    return e.vload_strided(o.dtype, p, e.i(o.col_stride), mask, L);
  }
  void store_vector(const MatmulOperand& o, V v, V p, V mask) {
    if (o.col_stride == 1) return e.vstore(o.dtype, v, p, mask);
    e.vstore_strided(o.dtype, v, p, e.i(o.col_stride), mask);
  }

  Fn tile(int height, int vectors, int64_t b_stride, int64_t cols);
  // Whether every k block has an even number of steps.
  bool even_steps() const {
    const int64_t elements = d.bf16 ? 4 : 2;
    return d.group != MatmulGroup::Reduction && d.k % elements == 0 &&
           p.block_k % elements == 0;
  }
  Vs reduce(V a, V a_row, V b, V kk, int height, int vectors, int64_t b_stride,
            const std::function<void(V row)>& fetch, V ahead);
  // Outputs and extras, all as `bases` holds them.
  const MatmulOperand& beside(size_t i) const {
    const size_t n = d.outputs.size();
    return i < n ? d.outputs[i] : d.extras[i - n];
  }
  // `bases` moved on to an element.
  template <class Row>
  Vs moved(Vs bases, Row row) {
    for (size_t i = 0; i < bases.size(); ++i)
      bases[i] = e.at(bases[i], mul(row, beside(i).row_stride),
                      dtype_size(beside(i).dtype));
    return bases;
  }
  Vs moved(Vs bases, V row, V col) {
    for (size_t i = 0; i < bases.size(); ++i)
      bases[i] = element(bases[i], beside(i), row, col);
    return bases;
  }
  V mul(V x, int64_t by) { return e.mul(x, by); }
  int64_t mul(int64_t x, int64_t by) { return x * by; }
  void finish_row(const Vs& acc, const Vs& masks, const Vs& at);
  void rows_of_block(const Vs& bases, V a, V b, V kk, V partial, V flags, V row,
                     V rows, V col, int64_t cols, int64_t b_stride);
  Fn pair_tile(bool accumulate);
  Fn pair_finish(int64_t cols);
  void pair_rows(const Vs& bases, V a, V b, V steps, V partial, V flags, V row,
                 V rows, V col, int64_t cols);
  void block(V batch, V group, V row, V rows, V block_n, V k_from, V k_count);
  void run();
};

// Tile sums over kk steps: height x vectors. a_row is the distance of A's rows
// in bytes, fetch(r) asks for what row r of the tile needs afterwards; `ahead`
// is the tile's part of the next panel.
Vs Body::reduce(V a, V a_row, V b, V kk, int height, int vectors,
                int64_t b_stride, const std::function<void(V row)>& fetch,
                V ahead) {
  // carried: sums, then the running addresses of B and of each fourth row of A:
  // a base, an index and a short displacement reach the rows between
  const size_t sums = size_t(height) * vectors;
  Vs c(sums, e.splat(e.f(0)));
  c.push_back(b);
  for (int r = 0; r < height; r += 4) c.push_back(e.at(a, e.mul(a_row, r), 1));
  V three = e.mul(a_row, 3);
  auto row_of = [&](V base, int r) {
    return r == 0 ? base : r == 3 ? e.at(base, three, 1) : e.at(base, a_row, r);
  };
  auto step = [&](Vs& c, int u) {
    V b0 = e.at(c[sums], u * b_stride);
    // steps far apart defeat the hardware's prefetcher
    if (a_step >= 256) e.prefetch(e.at(c[sums + 1], (u + kAhead) * a_step, 1));
    Vs bv;
    for (int j = 0; j < vectors; ++j)
      bv.push_back(e.load_raw(d.bf16 ? Ty::I32 : Ty::F32, e.at(b0, j * L), L));
    for (int r = 0; r < height; ++r) {
      V at = row_of(e.at(c[sums + 1 + r / 4], u * a_step, 1), r % 4);
      V x = e.splat(d.bf16 ? e.load_raw(Ty::I32, at, -1, 2)
                           : e.load(a_dtype, at));
      for (int j = 0; j < vectors; ++j) {
        V& sum = c[r * vectors + j];
        sum = d.bf16 ? e.dpbf16(sum, x, bv[j]) : e.fma(x, bv[j], sum);
      }
    }
  };
  // `count` steps at a time, before them `first`
  auto steps = [&](V from, V to, int count,
                   const std::function<void(V k)>& first = nullptr) {
    c = e.loop(from, to, count, c, [&](V k, Vs next) {
      if (first) first(k);
      for (int u = 0; u < count; ++u) step(next, u);
      next[sums] = e.at(next[sums], count * b_stride);
      for (size_t i = sums + 1; i < next.size(); ++i)
        next[i] = e.at(next[i], count * a_step, 1);
      return next;
    });
  };
  V even = kk, done = e.i(0);
  if (!even_steps()) even = e.and_(kk, e.i(-2));
  if (height == p.heights[0]) {
    done = e.min(even, e.i(2 * height));
    steps(e.i(0), done, 2, [&](V k) { fetch(e.lshr(k, e.i(1))); });
  } else {
    for (int r = 0; r < height; ++r) fetch(e.i(r));
  }
  if (height == p.heights[0] && p.lines_ahead) {
    V from = done;
    done = e.min(even, e.add(from, 2 * p.lines_ahead));
    steps(from, done, 2, [&](V k) {
      e.prefetch(e.at(ahead, e.mul(e.sub(k, from), kLine / 2), 1), 2);
    });
  }
  // scalar instructions take the FMA's ports now and then: few for a step
  steps(done, even, 2);
  if (even != kk) steps(even, kk, 1);
  c.resize(sums);
  return c;
}

// Scale, epilogue and store of one row of a tile; `at`: where it begins in
// outputs and extras.
void Body::finish_row(const Vs& acc, const Vs& masks, const Vs& at) {
  for (size_t j = 0; j < acc.size(); ++j) {
    Vs p;  // constant distances, so that they cost no instruction
    for (size_t i = 0; i < at.size(); ++i)
      p.push_back(e.at(at[i], int64_t(j) * L * beside(i).col_stride,
                       dtype_size(beside(i).dtype)));
    V sum = d.scale == 1 ? acc[j] : e.mul(acc[j], e.f(d.scale));
    Vs out{sum};
    const size_t n = d.outputs.size();
    if (d.epilogue) {
      Vs extras;
      for (size_t x = 0; x < d.extras.size(); ++x)
        extras.push_back(load_vector(d.extras[x], p[n + x], masks[j]));
      out = d.epilogue(e, sum, extras);
      MOEC_CHECK(out.size() == n, "epilogue gives {} values for {} outputs",
                 out.size(), n);
    }
    for (size_t o = 0; o < n; ++o) {
      if (o == 0 && d.accumulate)
        out[o] = e.add(out[o], load_vector(d.outputs[o], p[o], masks[j]));
      store_vector(d.outputs[o], out[o], p[o], masks[j]);
    }
  }
}

// tile(a, a_row, b, kk, partial, flags, row, col, ahead, bases...): flags bit
// 0 = earlier partial sums exist, bit 1 = this is the last k block.
Fn Body::tile(int height, int vectors, int64_t b_stride, int64_t cols) {
  std::string name = "tile" + std::to_string(height) + "x" +
                     std::to_string(vectors) + "s" + std::to_string(b_stride) +
                     "c" + std::to_string(cols);
  std::vector<Ty> params{Ty::Ptr, Ty::I64, Ty::Ptr, Ty::I64, Ty::Ptr,
                         Ty::I64, Ty::I64, Ty::I64, Ty::Ptr};
  const size_t fixed = params.size();
  params.resize(fixed + d.outputs.size() + d.extras.size(), Ty::Ptr);
  return e.define(name, params, [&](const Vs& args) {
    V partial = args[4], flags = args[5];
    const Vs at = moved({args.begin() + fixed, args.end()}, args[6], args[7]);
    // C's and the extras' lines arrive while the sums run
    auto fetch = [&](V row) {
      for (size_t i = 0; i < at.size(); ++i) {
        const MatmulOperand& o = beside(i);
        const bool extra = i >= d.outputs.size();
        if (o.col_stride != 1 || o.row_stride == 0 || (i && !extra)) continue;
        const int64_t size = dtype_size(o.dtype);
        V line = e.at(at[i], e.mul(row, o.row_stride), size);
        for (int j = 0; j < vectors; ++j)
          e.prefetch(e.at(line, int64_t(j) * L, size), 3, !extra);
      }
    };
    // of tiles the rows are side by side
    V a_row = p.a == MatmulPlan::A::Tiles ? e.i(this->a_row) : args[1];
    Vs acc = reduce(args[0], a_row, args[2], args[3], height, vectors, b_stride,
                    fetch, args[8]);
    Vs masks(vectors, nullptr);
    for (int j = 0; j < vectors; ++j)
      if (cols < (j + 1) * L) masks[j] = e.mask(e.i(cols - j * L));

    auto finish = [&](const Vs& sums) {
      if (!d.epilogue || d.cheap_epilogue) {
        for (int r = 0; r < height; ++r)
          finish_row(Vs(&sums[r * vectors], &sums[(r + 1) * vectors]), masks,
                     moved(at, int64_t(r)));
        return;
      }
      // through the stack and rolled: long epilogues unrolled are no faster
      // and take several times as long to compile
      V spill = e.local(int64_t(height) * vectors * L * 4);
      for (size_t q = 0; q < sums.size(); ++q)
        e.vstore_aligned(DType::F32, sums[q], e.at(spill, int64_t(q) * L));
      e.loop(e.i(0), e.i(height), 1, [&](V r) {
        V from = e.at(spill, e.mul(r, vectors * L));
        Vs row_sums;
        for (int j = 0; j < vectors; ++j)
          row_sums.push_back(e.vload_aligned(DType::F32, e.at(from, j * L)));
        finish_row(row_sums, masks, moved(at, r));
      });
    };
    if (!p.split_k) return finish(acc);

    auto slot = [&](int q) {
      return e.at(partial, (q / vectors) * p.panel + (q % vectors) * L);
    };
    acc = e.if_values(
        e.ne(e.and_(flags, e.i(1)), e.i(0)),
        [&] {
          Vs sums;
          for (size_t q = 0; q < acc.size(); ++q)
            sums.push_back(
                e.add(acc[q], e.vload_aligned(DType::F32, slot(int(q)))));
          return sums;
        },
        [&] { return acc; });
    e.if_(
        e.ne(e.and_(flags, e.i(2)), e.i(0)), [&] { finish(acc); },
        [&] {
          for (size_t q = 0; q < acc.size(); ++q)
            e.vstore_aligned(DType::F32, acc[q], slot(int(q)));
        });
  });
}

// All tiles of one panel: `rows` rows from `row` on, a at the first of them.
void Body::rows_of_block(const Vs& bases, V a, V b, V kk, V partial, V flags,
                         V row, V rows, V col, int64_t cols, int64_t b_stride) {
  const int vectors = int((cols + L - 1) / L);
  auto run_tile = [&](Fn f, V at) {
    V here = e.at(a, e.mul(at, a_row), 1);
    if (p.a == MatmulPlan::A::Tiles) {
      V tall = e.i(p.heights[0]);
      here =
          e.at(e.at(a, e.mul(e.udiv(at, tall), p.a_pitch)), e.urem(at, tall));
    }
    // the tiles share the next panel's lines
    V next = e.at(b, d.k * p.panel);
    V ahead = e.at(next, e.mul(at, p.lines_ahead * kLine / p.heights[0]), 1);
    Vs args{here,  e.i(a_row),     b,   kk,   e.at(partial, e.mul(at, p.panel)),
            flags, e.add(row, at), col, ahead};
    args.insert(args.end(), bases.begin(), bases.end());
    e.call(f, args);
  };
  V done = e.i(0);
  for (int h : p.heights) {
    Fn f = tile(h, vectors, b_stride, cols);
    // as many tiles of this height as fit; below the first, at most one or two
    V end = e.add(rows, 1 - h);
    done = e.while_(
        {done}, [&](const Vs& c) { return e.lt(c[0], end); },
        [&](Vs c) {
          run_tile(f, c[0]);
          return Vs{e.add(c[0], h)};
        })[0];
  }
}

// tile(A, B, C, k): 32 x 32 sums in tile registers.
Fn Body::pair_tile(bool accumulate) {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define(accumulate ? "pairs_add" : "pairs", params, [&](const Vs& x) {
    const int64_t ld = 4 * p.panel;
    pair_product(e, {x[0], a_row, x[1], ld, x[2], ld}, e.i(kPairStep), x[3],
                 accumulate);
  });
}

// finish(C, first, end, row, col, bases...): stores rows `first` to `end` of a
// tile, the first of them `row` of the product.
Fn Body::pair_finish(int64_t cols) {
  std::vector<Ty> params = {Ty::Ptr, Ty::I64, Ty::I64, Ty::I64, Ty::I64};
  const size_t fixed = params.size();
  params.resize(fixed + d.outputs.size() + d.extras.size(), Ty::Ptr);
  return e.define("finish" + std::to_string(cols), params, [&](const Vs& x) {
    Vs bases(x.begin() + fixed, x.end());
    const int vectors = int((cols + L - 1) / L);
    Vs masks(vectors, nullptr);
    for (int j = 0; j < vectors; ++j)
      if (cols < (j + 1) * L) masks[j] = e.mask(e.i(cols - j * L));
    e.loop(x[1], x[2], 1, [&](V r) {
      Vs sums;
      for (int j = 0; j < vectors; ++j)
        sums.push_back(e.vload_aligned(
            DType::F32, e.at(e.at(x[0], e.mul(r, p.panel)), j * L)));
      finish_row(sums, masks, moved(bases, e.add(x[3], e.sub(r, x[1])), x[4]));
    });
  });
}

// rows_of_block in tile registers. Where A is read in place its last rows come
// with some before them, so that a tile is whole.
void Body::pair_rows(const Vs& bases, V a, V b, V steps, V partial, V flags,
                     V row, V rows, V col, int64_t cols) {
  V k = e.and_(e.add(e.mul(steps, 2), kPairStep - 1), e.i(-kPairStep));
  // zeros up to whole tiles along k
  e.loop(e.mul(steps, 2), k, 2, [&](V at) {
    V to = e.at(b, e.mul(at, p.panel / 2));
    for (int j = 0; j < 2; ++j)
      e.store_raw(e.zero(Ty::I32, L), e.at(to, j * L), 4 * L);
  });
  e.loop(e.i(0), rows, kPairStep, [&](V at) {
    V before = e.i(0);
    if (p.a == MatmulPlan::A::Direct)
      before = e.max(e.add(e.add(row, at), kPairStep - d.m), e.i(0));
    V from = e.at(a, e.mul(e.sub(at, before), a_row), 1);
    V c = p.split_k ? e.at(partial, e.mul(at, p.panel)) : partial;
    Vs args{from, b, c, k};
    if (p.split_k)
      e.if_(
          e.ne(e.and_(flags, e.i(1)), e.i(0)),
          [&] { e.call(pair_tile(true), args); },
          [&] { e.call(pair_tile(false), args); });
    else
      e.call(pair_tile(false), args);
    V end = e.add(before, e.min(e.sub(rows, at), e.i(kPairStep)));
    Vs last{c, before, end, e.add(row, at), col};
    last.insert(last.end(), bases.begin(), bases.end());
    e.if_(e.ne(e.and_(flags, e.i(2)), e.i(0)),
          [&] { e.call(pair_finish(cols), last); });
  });
}

// One block of C for one batch index or expert.
void Body::block(V batch, V group, V row, V rows, V block_n, V k_from,
                 V k_count) {
  // offsets of this batch index: mixed radix, last dimension fastest
  Vs index(d.batch.size(), e.i(0));
  V rest = batch;
  for (int i = int(d.batch.size()) - 1; i >= 0; --i) {
    index[i] = i == 0 ? rest : e.urem(rest, e.i(d.batch[i]));
    if (i) rest = e.udiv(rest, e.i(d.batch[i]));
  }
  auto base = [&](const MatmulOperand& o) {
    V offset = e.i(o.offset);
    for (size_t i = 0; i < o.batch_strides.size(); ++i)
      if (o.batch_strides[i])
        offset = e.add(offset, e.mul(index[i], o.batch_strides[i]));
    if (o.group_stride) offset = e.add(offset, e.mul(group, o.group_stride));
    return e.at(e.buffer(o.buffer), offset, dtype_size(o.dtype));
  };
  Vs bases;
  for (auto& o : d.outputs) bases.push_back(base(o));
  for (auto& o : d.extras) bases.push_back(base(o));
  V a = base(d.a), b = base(d.b);
  V workspace = p.workspace >= 0 ? e.buffer(p.workspace) : nullptr;

  // Static columns: every task but the last has full panels only.
  const int64_t panels = p.block_n / p.panel;
  const int64_t tail = d.n % p.panel;
  V first = e.mul(block_n, panels);  // panel index
  V full_end = e.min(e.add(first, panels), e.i(d.n / p.panel));

  auto k_block = [&](V k0, V kk, V flags) {
    V ak = e.at(a,
                e.add(e.mul(row, d.a.row_stride),
                      e.mul(e.add(k_from, k0), d.a.col_stride)),
                dtype_size(d.a.dtype));
    if (p.a != MatmulPlan::A::Direct) {
      V packed = e.at(e.scratch(), p.a_offset, 1);
      e.call(p.pairs ? define_pack_pairs(e, d, p) : define_pack_a(e, d, p),
             {ak, packed, kk, rows});
      ak = packed;
    }
    V steps = d.bf16 ? e.lshr(e.add(kk, 1), e.i(1)) : kk;
    auto panel = [&](V index, int64_t cols, bool direct) {
      V col = e.mul(index, p.panel);
      V src = element(b, d.b, e.add(k_from, k0), col);
      V local_index = e.sub(index, first);
      V partial = e.at(e.scratch(), p.partial_offset, 1);
      if (p.split_k)
        partial = e.at(partial, e.mul(local_index, p.block_m * p.panel));
      V packed = src;
      if (p.workspace_b) {
        V at = e.mul(e.add(e.mul(index, d.k), k0), p.panel);
        packed = e.at(workspace, at);
      } else if (!direct) {
        packed = e.scratch();
        e.call(define_pack_b(e, d, p, cols), {src, packed, kk});
      }
      if (p.pairs)
        return pair_rows(bases, ak, packed, steps, partial, flags, row, rows,
                         col, cols);
      rows_of_block(bases, ak, packed, steps, partial, flags, row, rows, col,
                    cols, direct ? d.b.row_stride : p.panel);
    };
    if (d.n >= p.panel)
      e.loop(first, full_end, 1, [&](V i) { panel(i, p.panel, p.direct_b); });
    if (tail)
      e.if_(e.eq(block_n, e.i(p.blocks_n - 1)),
            [&] { panel(e.i(d.n / p.panel), tail, false); });
  };
  if (!p.split_k) return k_block(e.i(0), k_count, e.i(2));
  // An empty reduction still runs one block of zero steps, which stores 0.
  V end = e.max(k_count, e.i(1));
  e.loop(e.i(0), end, p.block_k, [&](V k0) {
    V kk = e.min(e.sub(k_count, k0), e.i(p.block_k));
    V earlier = e.zext(e.gt(k0, e.i(0)), Ty::I64);
    V last = e.zext(e.ge(e.add(k0, p.block_k), end), Ty::I64);
    k_block(k0, kk, e.or_(earlier, e.shl(last, e.i(1))));
  });
}

void Body::run() {
  V task = e.task();
  if (p.workspace_b) {
    V row = e.mul(e.urem(task, e.i(p.blocks_m)), p.block_m);
    return block(e.i(0), e.i(0), row,
                 e.min(e.sub(e.i(d.m), row), e.i(p.block_m)),
                 e.udiv(task, e.i(p.blocks_m)), e.i(0), e.i(d.k));
  }
  V block_n = e.urem(task, e.i(p.blocks_n));
  V rest = e.udiv(task, e.i(p.blocks_n));

  auto offset = [&](V expert) {
    V v = e.load(DType::I32, e.at(e.buffer(d.offsets_buffer), expert));
    return e.sext(v, Ty::I64);
  };
  if (d.group == MatmulGroup::Rows) {
    // block number -> expert and its row block; the list is at most
    // ceil(m / block_m) + experts long, the surplus does nothing
    Vs found = e.while_(
        {e.i(0), rest, e.i(0), offset(e.i(0))},
        [&](const Vs& c) {
          return e.and_(e.lt(c[0], e.i(d.experts)), e.eq(c[2], e.i(0)));
        },
        [&](Vs c) {
          V next = offset(e.add(c[0], 1));
          V blocks = e.ceil_div(e.sub(next, c[3]), p.block_m);
          V here = e.lt(c[1], blocks);
          return Vs{e.select(here, c[0], e.add(c[0], 1)),
                    e.select(here, c[1], e.sub(c[1], blocks)),
                    e.zext(here, Ty::I64), e.select(here, c[3], next)};
        });
    e.if_(e.ne(found[2], e.i(0)), [&] {
      // the expert's rows in equal blocks of whole tiles: a small remainder
      // would pack a panel for a few rows
      V end = offset(e.add(found[0], 1));
      V count = e.sub(end, found[3]);
      V blocks = e.ceil_div(count, p.block_m);
      const int64_t tall = p.heights[0];
      V each = e.udiv(e.add(count, e.sub(blocks, e.i(1))), blocks);
      each = e.mul(e.ceil_div(each, tall), tall);
      V row = e.add(found[3], e.mul(found[1], each));
      V rows = e.max(e.min(e.sub(end, row), each), e.i(0));
      block(e.i(0), found[0], row, rows, block_n, e.i(0), e.i(d.k));
    });
    return;
  }
  V block_m = e.urem(rest, e.i(p.blocks_m));
  rest = e.udiv(rest, e.i(p.blocks_m));
  V row = e.mul(block_m, p.block_m);
  V rows = e.min(e.sub(e.i(d.m), row), e.i(p.block_m));
  if (d.group == MatmulGroup::Reduction) {
    V from = offset(rest);
    V count = e.sub(offset(e.add(rest, 1)), from);
    block(e.i(0), rest, row, rows, block_n, from, count);
    return;
  }
  V from = e.mul(rest, p.batch_per_task);
  V to = e.min(e.add(from, p.batch_per_task), e.i(p.batch));
  e.loop(from, to, 1, [&](V batch) {
    block(batch, e.i(0), row, rows, block_n, e.i(0), e.i(d.k));
  });
}

}  // namespace

void emit_matmul_sum(Emit& e, const MatmulDesc& d, int workspace,
                     int64_t parts) {
  const MatmulOperand& c = d.outputs[0];
  const int L = e.lanes();
  V first = e.mul(e.task(), kSumRows);
  V end = e.min(e.add(first, kSumRows), e.i(d.m));
  e.loop(first, end, 1, [&](V row) {
    V from = e.at(e.buffer(workspace), e.mul(row, d.n));
    V to = e.at(e.buffer(c.buffer), e.add(e.mul(row, c.row_stride), c.offset),
                dtype_size(c.dtype));
    auto columns = [&](V j, V mask) {
      V sum = e.loop(e.i(0), e.i(parts), 1, {e.zero(Ty::F32, 0)},
                     [&](V part, Vs s) {
                       V at = e.add(e.mul(part, d.m * d.n), j);
                       V x = e.vload(DType::F32, e.at(from, at), mask);
                       return Vs{e.add(s[0], x)};
                     })[0];
      if (d.scale != 1) sum = e.mul(sum, e.f(d.scale));
      V p = e.at(to, j, dtype_size(c.dtype));
      if (d.accumulate) sum = e.add(sum, e.vload(c.dtype, p, mask));
      e.vstore(c.dtype, sum, p, mask);
    };
    const int64_t whole = d.n / L * L;
    e.loop(e.i(0), e.i(whole), L, [&](V j) { columns(j, nullptr); });
    if (whole < d.n) columns(e.i(whole), e.mask(e.i(d.n - whole)));
  });
}

void emit_matmul(Emit& e, const MatmulDesc& d, const MatmulPlan& p) {
  if (p.pairs) begin_pairs(e);
  Body(e, d, p).run();
  if (p.pairs) end_pairs(e);
}

}  // namespace moec
