// The body of a matmul kernel: task -> block, packing, what becomes of sums.
#include "codegen/cpu/matmul_body.h"
#include "codegen/cpu/pair_tile.h"
#include "support/error.h"

namespace moec {

// Scale, epilogue and store of one row of a tile; `at`: where it begins in
// outputs and extras.
void MatmulBody::finish_row(const Vs& acc, const Vs& masks, const Vs& at) {
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

// One block of C for one batch index or expert.
void MatmulBody::block(V batch, V group, V row, V rows, V block_n, V k_from,
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

void MatmulBody::run() {
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
  MatmulBody(e, d, p).run();
  if (p.pairs) end_pairs(e);
}

}  // namespace moec
