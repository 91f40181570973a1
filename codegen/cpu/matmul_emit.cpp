// The body of a matmul kernel: task -> block, packing, what becomes of sums.
#include <algorithm>
#include <utility>

#include "codegen/cpu/matmul_body.h"
#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/target.h"
#include "support/error.h"

namespace moec {

void MatmulBody::fetch_row(const Vs& at, V row, int vectors) {
  for (size_t i = 0; i < at.size(); ++i) {
    const MatmulOperand& o = beside(i);
    const bool extra = i >= d.outputs.size();
    if (o.col_stride != 1 || o.row_stride == 0 || (i && !extra)) continue;
    const int64_t size = dtype_size(o.dtype);
    V line = e.at(at[i], e.mul(row, o.row_stride), size);
    for (int64_t c = 0; c < int64_t(vectors) * L;
         c += std::max<int64_t>(L, 64 / size))
      e.prefetch(e.at(line, c, size), 3, !extra);
  }
}

// Scale, epilogue and store of one row of a tile; `at`: where it begins in
// outputs and extras.
void MatmulBody::finish_row(const Vs& acc, const Vs& masks, const Vs& at) {
  // of bf16 two vectors are converted and stored as one
  Vs low(d.outputs.size(), nullptr);
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
      const MatmulOperand& to = d.outputs[o];
      const bool joins =
          e.target().bf16_dot && to.dtype == DType::BF16 && to.col_stride == 1;
      if (low[o]) {
        V first = e.at(p[o], -L, 2);
        e.store_raw(e.to_bf16(std::exchange(low[o], nullptr), out[o]), first,
                    2);
      } else if (joins && j + 1 < acc.size() && !masks[j + 1]) {
        low[o] = out[o];
      } else {
        store_vector(to, out[o], p[o], masks[j]);
      }
    }
  }
}

void MatmulBody::pass_on(Vs sums, V flags, const std::function<V(int i)>& slot,
                         const std::function<void(const Vs&)>& finish) {
  if (!p.split_k) return finish(sums);
  const int n = int(sums.size());
  sums = e.if_values(
      e.ne(e.and_(flags, e.i(1)), e.i(0)),
      [&] {
        Vs all;
        for (int i = 0; i < n; ++i)
          all.push_back(e.add(sums[i], e.vload_aligned(DType::F32, slot(i))));
        return all;
      },
      [&] { return sums; });
  e.if_(
      e.ne(e.and_(flags, e.i(2)), e.i(0)), [&] { finish(sums); },
      [&] {
        for (int i = 0; i < n; ++i)
          e.vstore_aligned(DType::F32, sums[i], slot(i));
      });
}

void MatmulBody::for_panels(
    const Block& x, const std::function<Vs(V, int64_t, const Vs&)>& body,
    const Vs& carried, const std::function<void(int64_t, const Vs&)>& end) {
  const int64_t panels = p.block_n / p.panel, whole = d.n / p.panel;
  const int64_t tail = d.n % p.panel;
  V first = e.mul(x.block_n, panels);
  if (whole) {
    Vs last = e.loop(first, e.min(e.add(first, panels), e.i(whole)), 1, carried,
                     [&](V i, Vs c) { return body(i, p.panel, c); });
    if (end) end(p.panel, last);
  }
  if (tail)
    e.if_(e.eq(x.block_n, e.i(p.blocks_n - 1)), [&] {
      Vs last = body(e.i(whole), tail, carried);
      if (end) end(tail, last);
    });
}

V MatmulBody::partial(const Block& x, V panel) {
  V sums = e.at(e.scratch(), p.partial_offset, 1);
  if (!p.split_k) return sums;
  V first = e.mul(x.block_n, p.block_n / p.panel);
  return e.at(sums, e.mul(e.sub(panel, first), p.block_m * p.panel));
}

V MatmulBody::packed_b(V panel, V k0) {
  V line = p.pairs ? e.mul(k0, p.planes * p.panel / 2) : e.mul(k0, p.panel);
  V at = e.add(e.mul(panel, p.b_pitch), line);
  return e.at(e.buffer(p.workspace), at);
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
  Block x{base(d.a), base(d.b), {}, row, rows, block_n, k_from};
  for (auto& o : d.outputs) x.bases.push_back(base(o));
  for (auto& o : d.extras) x.bases.push_back(base(o));

  auto part = [&](V k0, V kk, V flags) {
    p.pairs ? pair_block(x, k0, kk, flags) : vector_block(x, k0, kk, flags);
  };
  if (!p.split_k) return part(e.i(0), k_count, e.i(2));
  // An empty reduction still runs one block of zero steps, which stores 0.
  V end = e.max(k_count, e.i(1));
  e.loop(e.i(0), end, p.block_k, [&](V k0) {
    V kk = e.min(e.sub(k_count, k0), e.i(p.block_k));
    V earlier = e.zext(e.gt(k0, e.i(0)), Ty::I64);
    V last = e.zext(e.ge(e.add(k0, p.block_k), end), Ty::I64);
    part(k0, kk, e.or_(earlier, e.shl(last, e.i(1))));
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
