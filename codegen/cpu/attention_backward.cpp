#include "codegen/cpu/attention_backward.h"

#include <algorithm>
#include <bit>

#include "support/error.h"

namespace moec {

namespace {

struct Backward : BackwardTiles {
  // Whether each row of dK and dV is written whole by one block of queries
  // before any other adds to it.
  bool whole_blocks() const {
    if (!s.causal) return true;
    return !s.window && shift >= 0 && shift % kKeyBlock == 0;
  }

  void kernel() {
    if (copies) {
      s.q.row = s.k.row = s.dk.row = s.dim;
      s.o.row = s.v.row = s.dv.row = s.value_dim;
    }
    const KeyPart own = key_part(e, s, e.task());
    V owner = e.div(e.task(), e.i(int64_t(key_parts(s).size()) - 1));
    V b = e.div(owner, e.i(s.kv_heads)), kv = e.rem(owner, e.i(s.kv_heads));
    auto view = [&](int buffer, const AttentionView& v, V head) {
      return e.at(e.buffer(buffer),
                  e.add(e.mul(b, v.batch), e.mul(head, v.head)));
    };
    const int64_t group = s.heads / s.kv_heads;
    const int out = 6 + drop;
    Head head;
    head.own = own;
    head.k = view(1, in.k, kv), head.v = view(2, in.v, kv);
    V dk = view(out + 1, in.dk, kv), dv = view(out + 2, in.dv, kv);
    head.dk = dk, head.dv = dv;
    V zero = e.i(0), keys = e.sub(own.high, own.low);
    auto from_low = [&](V rows, int64_t stride) {
      return e.at(rows, e.mul(own.low, stride));
    };
    if (copies) {
      auto copy = [&](V rows, int64_t stride, int64_t to, int64_t width) {
        copy_rows(e, from_low(rows, stride), stride, from_low(part(to), width),
                  width, width, keys);
        return part(to);
      };
      head.k = copy(head.k, in.k.row, at.k, s.dim);
      head.v = copy(head.v, in.v.row, at.v, s.value_dim);
      head.dk = part(at.dk), head.dv = part(at.dv);
    }
    auto zero_rows = [&](V rows, int64_t stride, int64_t width) {
      e.loop(own.low, own.high, 1, [&](V k) {
        zero_fill(e, e.at(rows, e.mul(k, stride)), e.i(width));
      });
    };
    if (!whole_blocks()) {
      zero_rows(head.dk, s.dk.row, s.dim);
      zero_rows(head.dv, s.dv.row, s.value_dim);
    }
    if (drop) {
      head.key0 = e.load(DType::U32, e.buffer(6));
      head.key1 = e.load(DType::U32, e.at(e.buffer(6), 1));
    }
    e.loop(zero, e.i(group), 1, [&](V g) {
      V h = e.add(e.mul(kv, group), g);
      head.bh = e.add(e.mul(b, s.heads), h);
      head.first = e.eq(g, zero);
      head.q = view(0, in.q, h), head.dout = view(5, in.o, h);
      head.o = view(3, in.o, h), head.dq = view(out, in.dq, h);
      head.lse = e.at(e.buffer(4), e.mul(head.bh, s.q_len));
      head.dq_row = in.dq.row;
      if (key_parts(s).size() > 2) {
        head.dq = partial_rows(e, s, e.buffer(out + 3), own.number, head.bh);
        head.dq_row = s.dim;
      }
      e.loop(zero, e.i(s.q_len), kQueryBlock,
             [&](V qg) { query_block(head, qg); });
    });
    if (!copies) return;
    copy_rows(e, from_low(head.dk, s.dk.row), s.dk.row, from_low(dk, in.dk.row),
              in.dk.row, s.dim, keys);
    copy_rows(e, from_low(head.dv, s.dv.row), s.dv.row, from_low(dv, in.dv.row),
              in.dv.row, s.value_dim, keys);
  }

  // Rows of one head, and the keys that are the task's.
  struct Head {
    V q, dout, o, lse, dq, k, v, dk, dv, bh;
    V key0 = nullptr, key1 = nullptr;
    V first;  // whether nothing has been added to dK and dV
    int64_t dq_row;
    KeyPart own;
  };
  V part(int64_t offset) { return e.at(e.scratch(), offset); }

  // dQ of the queries from qg on, and what they add to dK and dV.
  void query_block(const Head& head, V qg) {
    V count = e.min(e.i(kQueryBlock), e.sub(e.i(s.q_len), qg));
    V q = e.at(head.q, e.mul(qg, in.q.row));
    V dout = e.at(head.dout, e.mul(qg, in.o.row));
    V o = e.at(head.o, e.mul(qg, in.o.row));
    V dq = e.at(head.dq, e.mul(qg, head.dq_row));
    // where the next block of queries lies, of this head or the next one
    V next = e.add(qg, kQueryBlock), ends = e.ge(next, e.i(s.q_len));
    auto after = [&](V rows, const AttentionView& v) {
      return e.at(rows, e.select(ends, e.i(v.head), e.mul(next, v.row)));
    };
    const AttentionView dq_view{0, s.q_len * head.dq_row, head.dq_row};
    Ahead ahead{after(head.q, in.q), after(head.dout, in.o),
                after(head.o, in.o), after(head.dq, dq_view)};
    if (copies) {
      auto copy = [&](V rows, int64_t stride, int64_t to, int64_t width) {
        copy_rows(e, rows, stride, part(to), width, width, count);
        return part(to);
      };
      q = copy(q, in.q.row, at.q_rows, s.dim);
      dout = copy(dout, in.o.row, at.dout_rows, s.value_dim);
    }
    auto for_panels = [&](const std::function<void(V q0, V count)>& body) {
      e.loop(e.i(0), count, panel, [&](V q0) { body(q0, e.sub(count, q0)); });
    };
    Fn pack_q =
        pack_function(e, "packq", panel, s.q.row, s.dim, s.scale * kLog2e);
    Fn pack_o = pack_function(e, "packo", panel, s.o.row, s.value_dim, s.scale);
    for_panels([&](V q0, V count) {
      for (int j = 0; j < 2; ++j) {
        V valid = e.add(count, -j * L);
        e.call(pack_q, {e.at(e.at(q, e.mul(q0, s.q.row)), j * L * s.q.row),
                        e.at(part(at.q + j * L), e.mul(q0, s.dim)), valid});
        e.call(pack_o,
               {e.at(e.at(dout, e.mul(q0, s.o.row)), j * L * s.o.row),
                e.at(part(at.dout + j * L), e.mul(q0, s.value_dim)), valid});
      }
    });
    statistics(o, dout, count, e.at(head.lse, qg), part(at.lse),
               part(at.delta));
    zero_fill(e, part(at.dq), e.i(at.lse - at.dq));
    V low = head.own.low, high = head.own.high;
    if (s.causal) high = e.min(high, e.add(e.add(qg, count), shift));
    if (s.window)
      low = e.max(low, floor_to(e, e.add(qg, shift - s.window + 1), kKeyBlock));
    e.loop(low, high, kKeyBlock,
           [&](V kb) { block(head, q, dout, qg, kb, e.eq(kb, low), ahead); });
    Fn unpack =
        e.define("unpack", {Ty::Ptr, Ty::Ptr, Ty::I64}, [&](const Vs& a) {
          auto row = [&](int r) { return e.at(a[1], r * head.dq_row); };
          unpack_rows(e, a[0], panel, s.dim, nullptr, row, a[2]);
        });
    for_panels([&](V q0, V count) {
      for (int j = 0; j < 2; ++j)
        e.call(unpack,
               {e.at(part(at.dq + j * L), e.mul(q0, s.dim)),
                e.at(e.at(dq, e.mul(q0, head.dq_row)), j * L * head.dq_row),
                e.add(count, -j * L)});
    });
  }

  // Rows of the next block of queries, which products fetch meanwhile.
  struct Ahead {
    V q, dout, o, dq;
  };

  // The pairs of a block of queries and a block of keys. Rows of q and dout are
  // those of the block.
  void block(const Head& head, V q, V dout, V qg, V kb, V fetches,
             const Ahead& ahead) {
    V zero = e.i(0);
    V p = part(at.p), ds = part(at.ds);
    V block = e.min(e.i(kKeyBlock), e.sub(e.i(s.k_len), kb));
    V k = e.at(head.k, e.mul(kb, s.k.row)),
      v = e.at(head.v, e.mul(kb, s.v.row));
    V first = s.causal ? e.max(zero, e.add(kb, -shift)) : zero;
    V last = e.i(s.q_len);
    if (s.window)
      last = e.min(last, e.add(e.add(kb, block), s.window - 1 - shift));
    V to = e.min(e.add(qg, kQueryBlock), last);
    V from = e.max(qg, floor_to(e, first, panel));
    e.loop(from, to, panel, [&](V q0) {
      KeyRange r = key_range(e, s, 2, q0, kb, block);
      V column = e.sub(q0, qg);
      V pt = e.at(p, column), st = e.at(ds, column);
      V keep = part(at.keep);
      if (drop) {
        V row = e.mul(e.add(e.mul(head.bh, s.q_len), q0), s.k_len);
        for (int j = 0; j < 2; ++j)
          e.call(dropout_factors(e, s, panel),
                 {e.at(keep, j * L), e.add(e.add(row, j * L * s.k_len), kb),
                  r.ends[1], head.key0, head.key1});
      }
      V rel = e.sub(kb, e.add(q0, shift));
      for_key_tiles(e, s, r, [&](int R, int C, bool masked, V a, V b) {
        const int skip = C == 2 ? 0 : L;
        e.call(
            gradients(R, C, masked),
            {k, v, e.at(part(at.q + skip), e.mul(column, s.dim)),
             e.at(part(at.dout + skip), e.mul(column, s.value_dim)),
             e.at(pt, skip), e.at(st, skip), e.at(part(at.lse + skip), column),
             e.add(rel, -skip), a, b, e.at(keep, skip)});
      });
      V half = r.ends[0], end = r.ends[1];
      V dq = e.at(part(at.dq), e.mul(column, s.dim));
      e.call(queries(2), {k, st, dq, half});
      if (s.causal)
        e.if_(e.lt(half, end), [&] {
          e.call(queries(1), {e.at(k, e.mul(half, s.k.row)),
                              e.at(e.at(st, L), e.mul(half, kBlockRow)),
                              e.at(dq, L), e.sub(end, half)});
        });
      if (!many || !s.causal) return;
      for (int j = 0; j < 2; ++j) {
        V own = j ? end : half;
        V n = e.min(e.i(kTallRows), e.sub(e.i(kKeyBlock), own));
        auto after = [&](V p) {
          return e.at(e.at(p, j * L), e.mul(own, kBlockRow));
        };
        e.call(unseen(), {after(pt), after(st), n});
      }
    });
    V whole = floor_to(e, block, rows);
    // keys from `to` on see none of these queries
    V seen = whole;
    if (s.causal)
      seen = e.min(whole, ceil_to(e, e.add(e.sub(to, kb), shift), rows));
    V tall = zero;
    if (many) tall = e.mul(e.div(seen, e.i(2 * kTallRows)), 2 * kTallRows);
    // body(key, rows, first query, queries) for tiles of keys
    using KeyTile = std::function<void(V key, int R, V qs, V n)>;
    auto for_keys = [&](int tall_rows, const KeyTile& body) {
      auto tile = [&](V key, int R) {
        V qs = qg;
        if (s.causal)
          qs = e.max(from, floor_to(e, e.add(e.add(kb, key), -shift), L));
        body(key, R, e.sub(qs, qg), e.sub(to, qs));
      };
      if (many)
        e.loop(zero, tall, tall_rows, [&](V key) { tile(key, tall_rows); });
      e.loop(tall, seen, rows, [&](V key) { tile(key, rows); });
      if (int rest = int(s.k_len % rows))
        e.if_(e.lt(seen, block), [&] {
          if (!s.causal) return tile(whole, rest);
          e.if_(e.and_(e.eq(seen, whole),
                       e.lt(e.add(e.add(kb, whole), -shift), to)),
                [&] { tile(whole, rest); });
        });
    };
    V old = e.i(L);
    if (whole_blocks()) {
      V fresh = e.eq(qg, zero);
      if (s.causal) fresh = e.or_(fresh, e.ge(kb, e.add(qg, shift)));
      old = e.select(e.and_(head.first, fresh), zero, old);
    }
    // Meanwhile a product fetches one line of each of half of the rows that the
    // next block of queries reads or writes: few misses at a time.
    struct Fetch {
      V rows;
      int64_t row;
      bool write = false;
    };
    // The rows of X that a few channels take stay in L1 while all keys pass.
    auto sums = [&](V p, V x, int64_t ldx, V c, int64_t ldc, int64_t channels,
                    const Fetch& f, const Fetch& g) {
      const bool wide = many && channels % (4 * L) == 0;
      const int cols = wide ? 4 : 2,
                tall_rows = wide ? kTallRows / 2 : kTallRows;
      const int64_t lines =
          std::bit_floor(uint64_t(std::max<int64_t>(channels / 16, 1)));
      auto part = [&](V d, int cols, int last) {
        for_keys(tall_rows, [&](V key, int R, V qs, V n) {
          V to = e.at(c, e.mul(e.add(kb, key), ldc));
          V number = e.add(e.div(key, e.i(tall_rows)), e.lshr(d, e.i(3)));
          V line = e.mul(e.and_(number, e.i(lines - 1)), 16);
          V later =
              e.mul(e.and_(e.div(number, e.i(lines)), e.i(1)), kQueryBlock / 2);
          auto at_line = [&](const Fetch& x) {
            return e.at(x.rows, e.add(e.mul(later, x.row), line));
          };
          auto step = [&](const Fetch& x) {
            return e.select(fetches, e.i(x.row), zero);
          };
          e.call(outer(R, cols, last, ldx, ldc, g.write),
                 {e.at(p, e.add(e.mul(key, kBlockRow), qs)),
                  e.at(e.at(x, e.mul(qs, ldx)), d), e.at(to, d), n, old,
                  at_line(f), at_line(g), step(f), step(g)});
        });
      };
      const int64_t whole = channels / (cols * L) * (cols * L);
      if (whole)
        e.loop(zero, e.i(whole), cols * L, [&](V d) { part(d, cols, L); });
      if (int rest = int(channels - whole))
        part(e.i(whole), (rest + L - 1) / L, (rest - 1) % L + 1);
    };
    sums(p, dout, s.o.row, head.dv, s.dv.row, s.value_dim,
         {ahead.dout, in.o.row}, {ahead.o, in.o.row});
    sums(ds, q, s.q.row, head.dk, s.dk.row, s.dim, {ahead.q, in.q.row},
         {ahead.dq, head.dq_row, true});
  }
};

}  // namespace

KernelSpec attention_backward(const AttentionSpec& s, const Target& target) {
  MOEC_CHECK(s.window == 0 || s.causal);
  const double pairs = attention_pairs(s) * double(s.batch * s.heads);
  KernelSpec spec;
  spec.key = attention_key("attention_grad", s);
  spec.tasks = s.batch * s.kv_heads * (int64_t(key_parts(s).size()) - 1);
  if (s.bf16 || splits_backward(s, target)) {
    emit_pairs_backward(spec, s, target);
  } else {
    spec.emit = [s](Emit& e) { Backward{e, s}.kernel(); };
    spec.scratch_bytes = 4 * BackwardLayout(s, panel_lanes(target)).end;
  }
  spec.flops = 2 * pairs * double(3 * s.dim + 2 * s.value_dim);
  spec.bytes = (s.bf16 ? 4.0 : 8.0) * double(s.batch) *
               (double(s.heads * s.q_len) * double(s.dim + s.value_dim) +
                double(s.kv_heads * s.k_len) * double(s.dim + s.value_dim));
  return spec;
}

}  // namespace moec
