// Tiles of sums in tile registers, the inner part of a matmul kernel on bf16.
#include "codegen/cpu/matmul_body.h"
#include "codegen/cpu/pair_tile.h"

namespace moec {

namespace {

constexpr int64_t kTileBytes = 4 * kTileUnits;
constexpr int64_t kSumBytes = 4 * kPairStep * kPairStep;

// Parts of a step in which something is done beside the tiles: one if there are
// so many steps that a row or two are enough for each.
int64_t parts_used(const MatmulPlan& p) {
  constexpr int64_t kManySteps = 16;
  return p.block_k / kPairStep < kManySteps ? beside_parts(p.planes) : 1;
}

}  // namespace

// Row r of a tile's sums: on to the outputs, or to the sums of all k blocks.
void MatmulBody::pair_row(const Pending& t, V r, const Vs& bases,
                          int64_t cols) {
  V from = e.at(t.sums, e.mul(r, p.panel));
  V earlier = e.at(t.earlier, e.mul(r, p.panel));
  Vs sums, masks;
  for (int64_t c = 0; c < cols; c += L) {
    sums.push_back(e.vload_aligned(DType::F32, e.at(from, c)));
    masks.push_back(c + L <= cols ? nullptr : e.mask(e.i(cols - c)));
  }
  auto slot = [&](int j) { return e.at(earlier, int64_t(j) * L); };
  pass_on(sums, t.flags, slot, [&](const Vs& all) {
    V row = e.add(t.row, e.sub(r, t.from));
    finish_row(all, masks, moved(bases, row, t.col));
  });
}

Vs MatmulBody::pending_args(const Pending& t) {
  return {t.sums, t.earlier, t.flags, t.from, t.end, t.row, t.col};
}
MatmulBody::Pending MatmulBody::pending_from(const V* x) {
  return {x[0], x[1], x[2], x[3], x[4], x[5], x[6]};
}

// finish(first, pending..., bases...): the rows from `first` on.
Fn MatmulBody::pair_finish(int64_t cols) {
  std::vector<Ty> params(8, Ty::I64);
  params[1] = params[2] = Ty::Ptr;
  params.resize(8 + d.outputs.size() + d.extras.size(), Ty::Ptr);
  return e.define("finish" + std::to_string(cols), params, [&](const Vs& x) {
    const Vs bases(x.begin() + 8, x.end());
    const Pending t = pending_from(&x[1]);
    e.loop(x[0], t.end, 1, [&](V r) { pair_row(t, r, bases, cols); });
  });
}

// tile(A, B, C, k, ahead, row, col, pending..., bases...): 32 x 32 sums in tile
// registers. Vector instructions run beside them: step by step they pass on the
// sums of the tile before, which would cost as much as several steps by itself,
// and ask for this tile's part of B's next panel and, unless row is negative,
// for the lines of the outputs at row, col.
Fn MatmulBody::pair_tile(int64_t cols) {
  std::vector<Ty> params(14, Ty::I64);
  for (int i : {0, 1, 2, 4, 7, 8}) params[i] = Ty::Ptr;
  params.resize(14 + d.outputs.size() + d.extras.size(), Ty::Ptr);
  return e.define("pairs" + std::to_string(cols), params, [&](const Vs& x) {
    const Vs bases(x.begin() + 14, x.end());
    const Pending t = pending_from(&x[7]);
    const int64_t ld = 4 * p.panel, parts = parts_used(p);
    const int64_t turns = p.block_k / kPairStep * parts;
    const int64_t rows = ceil_div(kPairStep, turns);  // a turn
    const int64_t lines = ceil_div(p.lines_ahead, parts);
    PairProduct m{x[0], a_row, x[1], ld, x[2], ld};
    m.planes = p.planes, m.a_plane = kTileBytes, m.fetch_a = true;
    if (p.a != MatmulPlan::A::Direct) m.a_step = kTileBytes * p.planes;
    m.stream_a = p.overlaps;
    const Vs here = moved(bases, x[5], x[6]);
    V fetches = e.ge(x[5], e.i(0));
    auto beside = [&](V k, int part) {
      if (parts == 1 && part != beside_parts(p.planes) / 2) return;
      V turn = e.mul(e.lshr(k, e.i(5)), parts);
      if (parts > 1) turn = e.add(turn, part);
      V first = e.mul(turn, rows), r = e.add(t.from, first);
      auto some = [&] {
        e.loop(r, e.min(e.add(r, rows), t.end), 1,
               [&](V r) { pair_row(t, r, bases, cols); });
      };
      if (rows == 1)
        e.if_(e.lt(r, t.end), [&] { pair_row(t, r, bases, cols); });
      else if (d.epilogue && !d.cheap_epilogue)
        some();
      else
        e.if_(
            e.le(e.add(r, rows), t.end),
            [&] {
              for (int64_t i = 0; i < rows; ++i)
                pair_row(t, e.add(r, i), bases, cols);
            },
            some);
      V line = e.at(x[4], e.mul(turn, lines * kLine), 1);
      for (int64_t i = 0; i < lines; ++i)
        e.prefetch(e.at(line, i * kLine, 1), 2);
      if (!p.fetch_outputs) return;
      e.if_(fetches, [&] {
        for (int64_t i = 0; i < rows; ++i)
          fetch_row(here, e.add(first, i), int((cols + L - 1) / L));
      });
    };
    if (p.overlaps) m.beside = beside;
    pair_product(e, m, e.i(kPairStep), x[3], e.i1(false));
    if (!p.overlaps) return;
    V rest = e.add(t.from, e.mul(e.lshr(x[3], e.i(5)), parts * rows));
    e.if_(e.lt(rest, t.end), [&] {
      Vs last{rest};
      last.insert(last.end(), x.begin() + 7, x.end());
      e.call(pair_finish(cols), last);
    });
  });
}

// A block's sums over one block of k. Where A is read in place its last rows
// come with some before them, so that a tile is whole.
void MatmulBody::pair_block(const Block& x, V k0, V kk, V flags) {
  const bool direct = p.a == MatmulPlan::A::Direct;
  V from = e.add(x.k_from, k0);
  V a = element(x.a, d.a, x.row, from);
  if (p.workspace_a) {
    V strip = e.mul(e.lshr(x.row, e.i(5)), p.a_pitch * 4);
    V at = e.add(strip, e.mul(e.lshr(k0, e.i(5)), kTileBytes * p.planes));
    a = e.at(e.at(e.buffer(p.workspace), p.workspace_a_offset, 1), at, 1);
  } else if (!direct) {
    V packed = e.at(e.scratch(), p.a_offset, 1);
    e.call(define_pack_pairs(e, d, p), {a, packed, kk, x.rows});
    a = packed;
  }
  V k = e.and_(e.add(kk, kPairStep - 1), e.i(-kPairStep));
  const int64_t parts = parts_used(p);
  const int64_t lines = ceil_div(p.lines_ahead, parts) * parts;
  V ends = e.ne(e.and_(flags, e.i(2)), e.i(0));
  // the first of several blocks needs nobody to pass its sums on
  V kept = e.eq(flags, e.i(0));
  // the others' go to two tiles in turn
  V turn = e.at(e.scratch(), p.turn_offset, 1);

  auto finish = [&](int64_t cols, const Vs& pending) {
    Vs args{pending[3]};
    args.insert(args.end(), pending.begin(), pending.end());
    args.insert(args.end(), x.bases.begin(), x.bases.end());
    e.call(pair_finish(cols), args);
  };
  for_panels(
      x,
      [&](V index, int64_t cols, Vs before) {
        V col = e.mul(index, p.panel), b;
        if (p.workspace_b) {
          b = packed_b(index, k0);
        } else {
          b = e.scratch();
          e.call(define_pack_b(e, d, p, cols),
                 {element(x.b, d.b, from, col), b, kk});
        }
        V sums = partial(x, index);
        return e.loop(e.i(0), x.rows, kPairStep, before, [&](V at, Vs before) {
          V early = e.i(0);
          if (direct)
            early = e.max(e.add(e.add(x.row, at), kPairStep - d.m), e.i(0));
          V strip = direct ? e.mul(e.sub(at, early), a_row)
                           : e.mul(e.lshr(at, e.i(5)), p.a_pitch * 4);
          V share =
              e.mul(e.lshr(at, e.i(5)), p.block_k / kPairStep * lines * kLine);
          V own = p.split_k ? e.at(sums, e.mul(at, p.panel)) : turn;
          V here =
              e.select(e.eq(before[0], turn), e.at(turn, kSumBytes, 1), turn);
          if (p.split_k) here = e.select(kept, own, here);
          V row = e.add(x.row, at);
          Vs args{e.at(a, strip, 1),
                  b,
                  here,
                  k,
                  e.at(e.at(b, p.b_pitch), share, 1),
                  e.select(ends, row, e.i(-1)),
                  col};
          args.insert(args.end(), before.begin(), before.end());
          args.insert(args.end(), x.bases.begin(), x.bases.end());
          e.call(pair_tile(cols), args);
          V end = e.add(early, e.min(e.sub(x.rows, at), e.i(kPairStep)));
          Vs now = pending_args(
              {here, own, flags, early, e.select(kept, early, end), row, col});
          if (p.overlaps) return now;
          finish(cols, now);
          return before;
        });
      },
      pending_args({turn, turn, flags, e.i(0), e.i(0), e.i(0), e.i(0)}),
      [&](int64_t cols, const Vs& last) {
        if (p.overlaps) finish(cols, last);
      });
}

}  // namespace moec
