#include "codegen/cpu/attention_emit.h"
#include "support/error.h"

namespace moec {

namespace {

// A row of the P^T and dS^T blocks: padded, so that rows spread over the cache.
constexpr int64_t kBlockRow = kQueryBlock + 16;

// Rows of the tallest tiles of keys; two of them are three of the usual ones.
constexpr int kTallRows = 12;

// Scratch, in f32: panels of Q^T, dO^T and dQ^T for all queries of one head,
// log-sum-exp (base 2) and rowsum(dO O) per query, then one block of P^T and
// dS^T, and of dropout factors; then the copies of rows.
struct Layout {
  int64_t q, dout, dq, lse, delta, p, ds, keep;
  int64_t k, v, dk, dv, q_rows, dout_rows, end;
  Layout(const AttentionSpec& s, int64_t panel) {
    const int64_t rows = (s.q_len + panel - 1) / panel * panel;
    q = 0;
    dout = q + rows * s.dim;
    dq = dout + rows * s.value_dim;
    lse = dq + rows * s.dim;
    delta = lse + rows;
    p = delta + rows;
    ds = p + kKeyBlock * kBlockRow;
    keep = ds + kKeyBlock * kBlockRow;
    k = keep + (s.dropout > 0 ? kKeyBlock * panel : 0);
    const int64_t keys = rows_apart(s) ? s.k_len : 0;
    const int64_t queries = rows_apart(s) ? s.q_len : 0;
    v = k + keys * s.dim;
    dk = v + keys * s.value_dim;
    dv = dk + keys * s.dim;
    q_rows = dv + keys * s.value_dim;
    dout_rows = q_rows + queries * s.dim;
    end = dout_rows + queries * s.value_dim;
  }
};

struct Backward {
  Emit& e;
  const AttentionSpec& in;  // the views of the buffers
  AttentionSpec s = in;     // those of the rows that the products use
  const bool copies = rows_apart(in);
  const int L = e.lanes(), panel = 2 * L, rows = tile_rows(e.target());
  const bool many = e.target().registers >= 32;
  const bool drop = s.dropout > 0;
  const int64_t shift = s.k_len - s.q_len;

  // gradients(K, V, Qt, dOt, P, dS, stats, rel, from, to, keep): P = exp2(K Q^T
  // - lse) and dS = P (V dO^T - delta) for tiles of keys
  Fn gradients(int R, int C, bool masked, int64_t stat_gap) {
    std::string name =
        "g" + std::to_string(R) + std::to_string(C) + (masked ? "m" : "");
    std::vector<Ty> params(7, Ty::Ptr);
    params.insert(params.end(), {Ty::I64, Ty::I64, Ty::I64, Ty::Ptr});
    return e.define(name, params, [&, R, C, masked](const Vs& a) {
      LaneTile t{R, C, L};
      e.loop(a[8], a[9], R, [&](V k) {
        V keys = e.at(a[0], e.mul(k, s.k.row));
        V row = e.mul(k, kBlockRow);
        V p = e.at(a[4], row), ds = e.at(a[5], row);
        Vs c =
            tile_product(e, t, zero_tile(e, t), {{keys, s.k.row, 1}}, a[2],
                         panel, e.i(s.dim), nullptr,
                         {fetch_ahead(e, s, a[0], k, s.k, s.dim, true),
                          fetch_ahead(e, s, a[1], k, s.v, s.value_dim, true)});
        for (int j = 0; j < C; ++j) {
          V lse = e.vload(DType::F32, e.at(a[6], j * L));
          for (int i = 0; i < R; ++i) {
            V x = exp2_fast(e, e.sub(c[i * C + j], lse));
            if (masked)
              x = e.select(lane_mask(e, s, e.add(e.add(a[7], k), i), j), x,
                           e.zero(Ty::F32, 0));
            e.vstore(DType::F32, x, e.at(p, i * kBlockRow + j * L));
          }
        }
        V values = e.at(a[1], e.mul(k, s.v.row));
        c = tile_product(e, t, zero_tile(e, t), {{values, s.v.row, 1}}, a[3],
                         panel, e.i(s.value_dim));
        V keep = drop ? e.at(a[10], e.mul(k, panel)) : nullptr;
        for (int j = 0; j < C; ++j) {
          V delta = e.vload(DType::F32, e.at(a[6], stat_gap + j * L));
          for (int i = 0; i < R; ++i) {
            V to = e.at(p, i * kBlockRow + j * L);
            V x = e.vload(DType::F32, to), g = c[i * C + j];
            if (drop) {
              V f = e.vload(DType::F32, e.at(keep, i * panel + j * L));
              e.vstore(DType::F32, e.mul(x, f), to);
              g = e.mul(g, f);
            }
            e.vstore(DType::F32, e.mul(x, e.sub(g, delta)),
                     e.at(ds, i * kBlockRow + j * L));
          }
        }
      });
    });
  }

  // queries(K, dS, dQt, n): dQt += K^T dS over n keys
  Fn queries(int C) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define("q" + std::to_string(C), params, [&, C](const Vs& a) {
      auto block = [&](V d, int R) {
        LaneTile t{R, C, L};
        V to = e.at(a[2], e.mul(d, panel));
        Vs c =
            tile_product(e, t, load_tile(e, t, to, panel),
                         {{e.at(a[0], d), 1, s.k.row}}, a[1], kBlockRow, a[3]);
        store_tile(e, t, c, to, panel);
      };
      // many channels: tall tiles, which load least, in fours, since low ones
      // then fill what is left
      const int64_t tall = many && s.dim >= 128 ? s.dim / 56 * 56 : 0;
      const int64_t whole = tall + (s.dim - tall) / rows * rows;
      if (tall) e.loop(e.i(0), e.i(tall), 14, [&](V d) { block(d, 14); });
      if (whole > tall)
        e.loop(e.i(tall), e.i(whole), rows, [&](V d) { block(d, rows); });
      if (whole < s.dim) block(e.i(whole), int(s.dim - whole));
    });
  }

  // unseen(P, dS, keys): zeros where tiles of keys that are taller than those
  // of gradients reach past the last key that lanes() queries see
  Fn unseen() {
    return e.define("u", {Ty::Ptr, Ty::Ptr, Ty::I64}, [&](const Vs& a) {
      e.loop(e.i(0), a[2], 1, [&](V k) {
        for (int i = 0; i < 2; ++i)
          e.vstore(DType::F32, e.zero(Ty::F32, 0),
                   e.at(a[i], e.mul(k, kBlockRow)));
      });
    });
  }

  // outer(P, X, C, n): C[key][channel] += P[key][query] X[query][channel] for R
  // keys and n queries; here channels are the lanes
  Fn outer(int R, int64_t channels, int64_t ldx, int64_t ldc) {
    std::string name = "o" + std::to_string(R) + "_" +
                       std::to_string(channels) + "_" + std::to_string(ldx) +
                       "_" + std::to_string(ldc);
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define(name, params, [=, this](const Vs& a) {
      auto part = [&](V d, int from, int R, int C, V mask) {
        LaneTile t{R, C, L};
        V to = e.at(e.at(a[2], from * ldc), d);
        Vs c = tile_product(e, t, load_tile(e, t, to, ldc, mask),
                            {{e.at(a[0], from * kBlockRow), kBlockRow, 1}},
                            e.at(a[1], d), ldx, a[3], mask);
        store_tile(e, t, c, to, ldc, mask);
      };
      auto block = [&](V d, int C, V mask) { part(d, 0, R, C, mask); };
      if (R == kTallRows && channels == 4 * L) {
        for (int from : {0, R / 2}) part(e.i(0), from, R / 2, 4, nullptr);
        return;
      }
      const int64_t whole = channels / panel * panel;
      if (whole)
        e.loop(e.i(0), e.i(whole), panel, [&](V d) { block(d, 2, nullptr); });
      if (int rest = int(channels - whole)) {
        int C = rest > L ? 2 : 1, last = rest - (C - 1) * L;
        block(e.i(whole), C, last < L ? e.mask(e.i(last)) : nullptr);
      }
    });
  }

  // Row sums of dO O and the log-sum-exp in base 2; lanes past the last query
  // get values that make P zero.
  void statistics(V o, V dout, V lse_in, V lse, V delta) {
    const int64_t width = s.value_dim;
    e.loop(e.i(0), e.i(s.q_len), 1, [&](V q) {
      V po = e.at(o, e.mul(q, in.o.row)), pd = e.at(dout, e.mul(q, s.o.row));
      for (int64_t c = 0; c < width; c += 16)
        e.prefetch(e.at(po, 16 * in.o.row + c));
      auto step = [&](V c, Vs sum, V mask) {
        return Vs{e.fma(e.vload(DType::F32, e.at(po, c), mask),
                        e.vload(DType::F32, e.at(pd, c), mask), sum[0])};
      };
      const int64_t whole = width / L * L;
      Vs sum = e.loop(e.i(0), e.i(whole), L, {e.zero(Ty::F32, 0)},
                      [&](V c, Vs x) { return step(c, x, nullptr); });
      if (whole < width)
        sum = step(e.i(whole), sum, e.mask(e.i(width - whole)));
      e.store(DType::F32, e.hsum(sum[0]), e.at(delta, q));
      e.store(DType::F32,
              e.mul(e.load(DType::F32, e.at(lse_in, q)), e.f(kLog2e)),
              e.at(lse, q));
    });
    const int64_t padded = (s.q_len + panel - 1) / panel * panel;
    for (int64_t q = s.q_len; q < padded; ++q) {
      e.store(DType::F32, e.f(-kLowest), e.at(lse, q));
      e.store(DType::F32, e.f(0), e.at(delta, q));
    }
  }

  void for_panels(const std::function<void(V q0, V count)>& body) {
    e.loop(e.i(0), e.i(s.q_len), panel,
           [&](V q0) { body(q0, e.min(e.sub(e.i(s.q_len), q0), e.i(panel))); });
  }

  void kernel() {
    const Layout at(in, panel);
    if (copies) {
      s.q.row = s.k.row = s.dk.row = s.dim;
      s.o.row = s.v.row = s.dv.row = s.value_dim;
    }
    auto part = [&](int64_t offset) { return e.at(e.scratch(), offset); };
    const bool alone = key_parts(s).size() == 2;
    const KeyPart own = key_part(e, s, e.task());
    V owner = e.div(e.task(), e.i(int64_t(key_parts(s).size()) - 1));
    V b = e.div(owner, e.i(s.kv_heads)), kv = e.rem(owner, e.i(s.kv_heads));
    auto view = [&](int buffer, const AttentionView& v, V head) {
      return e.at(e.buffer(buffer),
                  e.add(e.mul(b, v.batch), e.mul(head, v.head)));
    };
    const int64_t group = s.heads / s.kv_heads;
    const int out = 6 + drop;
    V k = view(1, in.k, kv), v = view(2, in.v, kv);
    V dk_out = view(out + 1, in.dk, kv), dv_out = view(out + 2, in.dv, kv);
    V dk = dk_out, dv = dv_out;
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
      k = copy(k, in.k.row, at.k, s.dim);
      v = copy(v, in.v.row, at.v, s.value_dim);
      dk = part(at.dk), dv = part(at.dv);
    }
    auto zero_rows = [&](V rows, int64_t stride, int64_t width) {
      e.loop(own.low, own.high, 1, [&](V k) {
        zero_fill(e, e.at(rows, e.mul(k, stride)), e.i(width));
      });
    };
    zero_rows(dk, s.dk.row, s.dim);
    zero_rows(dv, s.dv.row, s.value_dim);
    V key0 = nullptr, key1 = nullptr;
    if (drop) {
      key0 = e.load(DType::U32, e.buffer(6));
      key1 = e.load(DType::U32, e.at(e.buffer(6), 1));
    }
    e.loop(zero, e.i(group), 1, [&](V g) {
      V h = e.add(e.mul(kv, group), g);
      V bh = e.add(e.mul(b, s.heads), h);
      Head head{
          view(0, in.q, h), view(5, in.o, h), k, v, dk, dv, key0, key1, bh};
      V o = view(3, in.o, h), dq = view(out, in.dq, h);
      if (copies) {
        auto copy = [&](V& rows, int64_t stride, int64_t to, int64_t width) {
          copy_rows(e, rows, stride, part(to), width, width, e.i(s.q_len));
          rows = part(to);
        };
        copy(head.q, in.q.row, at.q_rows, s.dim);
        copy(head.dout, in.o.row, at.dout_rows, s.value_dim);
      }
      V lse = e.at(e.buffer(4), e.mul(bh, s.q_len));
      Fn pack_q =
          pack_function(e, "packq", panel, s.q.row, s.dim, s.scale * kLog2e);
      Fn pack_o = pack_function(e, "packo", panel, s.o.row, s.value_dim, 1);
      for_panels([&](V q0, V count) {
        V q = e.at(head.q, e.mul(q0, s.q.row));
        V g = e.at(head.dout, e.mul(q0, s.o.row));
        for (int j = 0; j < 2; ++j) {
          V valid = e.add(count, -j * L);
          e.call(pack_q, {e.at(q, j * L * s.q.row),
                          e.at(part(at.q + j * L), e.mul(q0, s.dim)), valid});
          e.call(pack_o,
                 {e.at(g, j * L * s.o.row),
                  e.at(part(at.dout + j * L), e.mul(q0, s.value_dim)), valid});
        }
      });
      statistics(o, head.dout, lse, part(at.lse), part(at.delta));
      zero_fill(e, part(at.dq), e.i(at.lse - at.dq));
      blocks(head, at, own);
      V scale = part(at.p);  // P is free now
      e.vstore(DType::F32, e.splat(e.f(s.scale)), scale);
      const int64_t dq_row = alone ? in.dq.row : s.dim;
      if (!alone) dq = partial_rows(e, s, e.buffer(out + 3), own.number, bh);
      Fn unpack = unpack_function(e, "unpack", panel, dq_row, s.dim);
      for_panels([&](V q0, V count) {
        for (int j = 0; j < 2; ++j)
          e.call(unpack, {e.at(part(at.dq + j * L), e.mul(q0, s.dim)), scale,
                          e.at(e.at(dq, j * L * dq_row), e.mul(q0, dq_row)),
                          e.add(count, -j * L)});
      });
    });
    copy_rows(e, from_low(dk, s.dk.row), s.dk.row, from_low(dk_out, in.dk.row),
              in.dk.row, s.dim, keys, s.scale);
    if (copies)
      copy_rows(e, from_low(dv, s.dv.row), s.dv.row,
                from_low(dv_out, in.dv.row), in.dv.row, s.value_dim, keys);
  }

  struct Head {
    V q, dout, k, v, dk, dv, key0, key1, bh;
  };

  // All pairs of a block of keys and a block of queries that see each other.
  void blocks(const Head& head, const Layout& at, const KeyPart& own) {
    auto part = [&](int64_t offset) { return e.at(e.scratch(), offset); };
    V zero = e.i(0);
    V p = part(at.p), ds = part(at.ds);
    e.loop(own.low, own.high, kKeyBlock, [&](V kb) {
      V block = e.min(e.i(kKeyBlock), e.sub(e.i(s.k_len), kb));
      V k = e.at(head.k, e.mul(kb, s.k.row)),
        v = e.at(head.v, e.mul(kb, s.v.row));
      V first = s.causal ? e.max(zero, e.add(kb, -shift)) : zero;
      V last = e.i(s.q_len);
      if (s.window)
        last = e.min(last, e.add(e.add(kb, block), s.window - 1 - shift));
      e.loop(floor_to(e, first, kQueryBlock), last, kQueryBlock, [&](V qg) {
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
                gradients(R, C, masked, at.delta - at.lse),
                {k, v, e.at(part(at.q + skip), e.mul(q0, s.dim)),
                 e.at(part(at.dout + skip), e.mul(q0, s.value_dim)),
                 e.at(pt, skip), e.at(st, skip), e.at(part(at.lse + skip), q0),
                 e.add(rel, -skip), a, b, e.at(keep, skip)});
          });
          V half = r.ends[0], end = r.ends[1];
          V dq = e.at(part(at.dq), e.mul(q0, s.dim));
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
        auto keys = [&](V key, int R) {
          V qs = qg;
          if (s.causal)
            qs = e.max(from, floor_to(e, e.add(e.add(kb, key), -shift), L));
          V n = e.sub(to, qs), row = e.add(kb, key);
          V at_p = e.add(e.mul(key, kBlockRow), e.sub(qs, qg));
          e.call(outer(R, s.value_dim, s.o.row, s.dv.row),
                 {e.at(p, at_p), e.at(head.dout, e.mul(qs, s.o.row)),
                  e.at(head.dv, e.mul(row, s.dv.row)), n});
          e.call(outer(R, s.dim, s.q.row, s.dk.row),
                 {e.at(ds, at_p), e.at(head.q, e.mul(qs, s.q.row)),
                  e.at(head.dk, e.mul(row, s.dk.row)), n});
        };
        V whole = floor_to(e, block, rows);
        // keys from `to` on see none of these queries
        V seen = whole;
        if (s.causal)
          seen = e.min(whole, ceil_to(e, e.add(e.sub(to, kb), shift), rows));
        V tall = zero;
        if (many) {
          tall = e.mul(e.div(seen, e.i(2 * kTallRows)), 2 * kTallRows);
          e.loop(zero, tall, kTallRows, [&](V key) { keys(key, kTallRows); });
        }
        e.loop(tall, seen, rows, [&](V key) { keys(key, rows); });
        if (int rest = int(s.k_len % rows))
          e.if_(e.lt(seen, block), [&] {
            if (!s.causal) return keys(whole, rest);
            e.if_(e.and_(e.eq(seen, whole),
                         e.lt(e.add(e.add(kb, whole), -shift), to)),
                  [&] { keys(whole, rest); });
          });
      });
    });
  }
};

}  // namespace

KernelSpec attention_backward(const AttentionSpec& s, const Target& target) {
  MOEC_CHECK(s.window == 0 || s.causal);
  const double pairs = attention_pairs(s) * double(s.batch * s.heads);
  KernelSpec spec;
  spec.key = attention_key("attention_grad", s);
  spec.tasks = s.batch * s.kv_heads * (int64_t(key_parts(s).size()) - 1);
  if (s.bf16) {
    emit_pairs_backward(spec, s, target);
  } else {
    spec.emit = [s](Emit& e) { Backward{e, s}.kernel(); };
    spec.scratch_bytes = 4 * Layout(s, panel_lanes(target)).end;
  }
  spec.flops = 2 * pairs * double(3 * s.dim + 2 * s.value_dim);
  spec.bytes = (s.bf16 ? 4.0 : 8.0) * double(s.batch) *
               (double(s.heads * s.q_len) * double(s.dim + s.value_dim) +
                double(s.kv_heads * s.k_len) * double(s.dim + s.value_dim));
  return spec;
}

}  // namespace moec
