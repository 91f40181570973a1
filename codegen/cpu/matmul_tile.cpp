// Tiles of sums in vector registers, the inner part of a matmul kernel.
#include "codegen/cpu/matmul_body.h"

namespace moec {

namespace {

// Steps of the reduction from the fetch of a line of A to its use: the latency
// of the last cache at 8 cycles a step.
constexpr int64_t kAhead = 32;

}  // namespace

// Tile sums over kk steps: height x vectors. a_row is the distance of A's rows
// in bytes, fetch(r) asks for what row r of the tile needs afterwards; `ahead`
// is the tile's part of the next panel.
Vs MatmulBody::reduce(V a, V a_row, V b, V kk, int height, int vectors,
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

// tile(a, a_row, b, kk, partial, flags, row, col, ahead, bases...): flags bit
// 0 = earlier partial sums exist, bit 1 = this is the last k block.
Fn MatmulBody::tile(int height, int vectors, int64_t b_stride, int64_t cols) {
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
    auto fetch = [&](V row) { fetch_row(at, row, vectors); };
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
    auto slot = [&](int q) {
      return e.at(partial, (q / vectors) * p.panel + (q % vectors) * L);
    };
    pass_on(acc, flags, slot, finish);
  });
}

// All tiles of one panel: `rows` rows from `row` on, a at the first of them.
void MatmulBody::rows_of_block(const Vs& bases, V a, V b, V kk, V partial,
                               V flags, V row, V rows, V col, int64_t cols,
                               int64_t b_stride) {
  const int vectors = int((cols + L - 1) / L);
  auto run_tile = [&](Fn f, V at) {
    V here = e.at(a, e.mul(at, a_row), 1);
    if (p.a == MatmulPlan::A::Tiles) {
      V tall = e.i(p.heights[0]);
      here =
          e.at(e.at(a, e.mul(e.udiv(at, tall), p.a_pitch)), e.urem(at, tall));
    }
    // the tiles share the next panel's lines
    V next = e.at(b, p.b_pitch);
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

void MatmulBody::vector_block(const Block& x, V k0, V kk, V flags) {
  V k = e.add(x.k_from, k0);
  V a = element(x.a, d.a, x.row, k);
  if (p.a != MatmulPlan::A::Direct) {
    V packed = e.at(e.scratch(), p.a_offset, 1);
    e.call(define_pack_a(e, d, p), {a, packed, kk, x.rows});
    a = packed;
  }
  V steps = d.bf16 ? e.lshr(e.add(kk, 1), e.i(1)) : kk;
  for_panels(x, [&](V index, int64_t cols, const Vs&) {
    const bool direct = p.direct_b && cols == p.panel;
    V col = e.mul(index, p.panel);
    V b = element(x.b, d.b, k, col);
    if (p.workspace_b) {
      b = packed_b(index, k0);
    } else if (!direct) {
      e.call(define_pack_b(e, d, p, cols), {b, e.scratch(), kk});
      b = e.scratch();
    }
    rows_of_block(x.bases, a, b, steps, partial(x, index), flags, x.row, x.rows,
                  col, cols, direct ? d.b.row_stride : p.panel);
    return Vs{};
  });
}

}  // namespace moec
