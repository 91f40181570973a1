#include <algorithm>

#include "codegen/cpu/attention_emit.h"

#include <cmath>

#include "support/error.h"

namespace moec {

namespace {

// Scratch, in f32: Q^T [D][panel], scores [block][panel], O^T [Dv][panel],
// statistics of the online softmax, dropout factors like the scores.
struct Layout {
  int64_t q, p, o, stats, keep, end;
  Layout(const AttentionSpec& s, int64_t panel) {
    q = 0;
    p = q + s.dim * panel;
    o = p + kKeyBlock * panel;
    stats = o + s.value_dim * panel;
    keep = stats + 4 * panel;
    end = keep + (s.dropout > 0 ? kKeyBlock * panel : 0);
  }
};
enum Stat { kMax, kSum, kNewMax, kAlpha };  // rows of the statistics

bool packs(const AttentionSpec& s) { return !s.bf16 && rows_apart(s); }
constexpr int64_t kPackedRows = 256;  // keys of one task

// Keys, then values of each (batch, kv head), side by side.
void emit_pack(Emit& e, const AttentionSpec& s) {
  const int64_t chunks = (s.k_len + kPackedRows - 1) / kPackedRows;
  V kv = e.div(e.task(), e.i(chunks));
  V from = e.mul(e.rem(e.task(), e.i(chunks)), kPackedRows);
  V n = e.min(e.i(kPackedRows), e.sub(e.i(s.k_len), from));
  V b = e.div(kv, e.i(s.kv_heads)), h = e.rem(kv, e.i(s.kv_heads));
  V to = e.at(e.buffer(2), e.mul(kv, s.k_len * (s.dim + s.value_dim)));
  auto copy = [&](int buffer, const AttentionView& v, int64_t width, V to) {
    V base = e.add(e.mul(b, v.batch), e.mul(h, v.head));
    V rows = e.at(e.buffer(buffer), e.add(base, e.mul(from, v.row)));
    copy_rows(e, rows, v.row, e.at(to, e.mul(from, width)), width, width, n);
  };
  copy(0, s.k, s.dim, to);
  copy(1, s.v, s.value_dim, e.at(to, s.k_len * s.dim));
}

// Vectors of queries in a task. Three load least for a sum, but half of what
// the mask cuts from a panel is lost, and so is what the last panel lacks.
int query_vectors(const AttentionSpec& s, const Target& t) {
  const bool wide = !s.bf16 && s.q_len >= (s.causal ? 1024 : 512);
  return wide ? wide_vectors(t) : 2;
}

struct Forward {
  Emit& e;
  AttentionSpec s;  // k and v as the products read them
  const int vectors = query_vectors(s, e.target());
  const int L = e.lanes(), panel = vectors * L, rows = tile_rows(e.target());
  const bool drop = s.dropout > 0;

  // scores(K, Qt, P, new_max, rel, from, to, V): tiles of keys from .. to
  Fn scores(int R, int C, bool masked) {
    std::string name =
        "s" + std::to_string(R) + std::to_string(C) + (masked ? "m" : "");
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::Ptr,
                              Ty::I64, Ty::I64, Ty::I64, Ty::Ptr};
    return e.define(name, params, [&, R, C, masked](const Vs& a) {
      LaneTile t{R, C, L};
      Vs best;
      for (int j = 0; j < C; ++j)
        best.push_back(e.vload(DType::F32, e.at(a[3], j * L)));
      best = e.loop(a[5], a[6], R, best, [&](V k, Vs best) {
        V keys = e.at(a[0], e.mul(k, s.k.row));
        Vs c =
            tile_product(e, t, zero_tile(e, t), {{keys, s.k.row, 1}}, a[1],
                         panel, e.i(s.dim), nullptr,
                         {fetch_ahead(e, s, a[0], k, s.k, s.dim, true),
                          fetch_ahead(e, s, a[7], k, s.v, s.value_dim, false)});
        V to = e.at(a[2], e.mul(k, panel));
        for (int i = 0; i < R; ++i)
          for (int j = 0; j < C; ++j) {
            V& x = c[i * C + j];
            if (masked) {
              V seen = lane_mask(e, s, e.add(e.add(a[4], k), i), j);
              x = e.select(seen, x, e.splat(e.f(-INFINITY)));
            }
            e.vstore(DType::F32, x, e.at(to, i * panel + j * L));
          }
        for (int j = 0; j < C; ++j) {
          Vs column;
          for (int i = 0; i < R; ++i) column.push_back(c[i * C + j]);
          for (size_t n = column.size(); n > 1; n = (n + 1) / 2)
            for (size_t i = 0; i < n / 2; ++i)
              column[i] = e.max(column[i], column[n - 1 - i]);
          best[j] = e.max(column[0], best[j]);
        }
        return best;
      });
      for (int j = 0; j < C; ++j)
        e.vstore(DType::F32, best[j], e.at(a[3], j * L));
    });
  }

  // soften(P, stats, n, keep): exponentials in place of n scores of lanes()
  // queries, their sum, and the factor of what was summed before
  Fn soften() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
    return e.define("soften", params, [&](const Vs& a) {
      auto stat = [&](Stat k) { return e.at(a[1], k * panel); };
      V best = e.vload(DType::F32, stat(kNewMax));
      V alpha = exp2_fast(e, e.sub(e.vload(DType::F32, stat(kMax)), best));
      V sum = e.mul(e.vload(DType::F32, stat(kSum)), alpha);
      auto step = [&](V k, Vs sums) {  // one exponential per sum
        V p = e.at(a[0], e.mul(k, panel));
        const int n = sums.size() == 1 ? 1 : 4;
        Vs x;
        for (int u = 0; u < n; ++u)
          x.push_back(exp2_fast(
              e, e.sub(e.vload(DType::F32, e.at(p, u * panel)), best)));
        V keep = drop ? e.at(a[3], e.mul(k, panel)) : nullptr;
        for (int u = 0; u < n; ++u) {
          V kept = x[u];
          if (drop)
            kept = e.mul(kept, e.vload(DType::F32, e.at(keep, u * panel)));
          e.vstore(DType::F32, kept, e.at(p, u * panel));
        }
        if (n == 1) return Vs{e.add(sums[0], x[0])};
        return Vs{e.add(sums[0], e.add(x[0], x[1])),
                  e.add(sums[1], e.add(x[2], x[3]))};
      };
      V whole = floor_to(e, a[2], 4);
      Vs sums = e.loop(e.i(0), whole, 4, {sum, e.zero(Ty::F32, 0)}, step);
      sums = e.loop(whole, a[2], 1, {e.add(sums[0], sums[1])}, step);
      e.vstore(DType::F32, best, stat(kMax));
      e.vstore(DType::F32, sums[0], stat(kSum));
      e.vstore(DType::F32, alpha, stat(kAlpha));
    });
  }

  // values(V, P, Ot, alpha, n, Q, O): Ot = alpha Ot + V^T P over n keys;
  // fetches rows at Q for the next task and at O to be written
  Fn values(int C, bool rescale) {
    std::string name = "v" + std::to_string(C) + (rescale ? "a" : "");
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::Ptr,
                              Ty::I64, Ty::Ptr, Ty::Ptr};
    return e.define(name, params, [&, C, rescale](const Vs& a) {
      Vs alpha;
      for (int j = 0; j < C; ++j)
        alpha.push_back(e.vload(DType::F32, e.at(a[3], j * L)));
      auto block = [&](V d, int R) {
        LaneTile t{R, C, L};
        V to = e.at(a[2], e.mul(d, panel));
        Vs c = load_tile(e, t, to, panel);
        if (rescale)
          for (int i = 0; i < R * C; ++i) c[i] = e.mul(c[i], alpha[i % C]);
        c = tile_product(e, t, c, {{e.at(a[0], d), 1, s.v.row}}, a[1], panel,
                         a[4], nullptr,
                         {{e.at(a[5], d), e.i(s.q.row)},
                          {e.at(a[6], d), e.i(s.o.row), 3, true}});
        store_tile(e, t, c, to, panel);
      };
      const int64_t whole = s.value_dim / rows * rows;
      if (whole) e.loop(e.i(0), e.i(whole), rows, [&](V d) { block(d, rows); });
      if (whole < s.value_dim) block(e.i(whole), int(s.value_dim - whole));
    });
  }

  void kernel() {
    const Layout at(s, panel);
    const int64_t panels = (s.q_len + panel - 1) / panel;
    auto part = [&](int64_t offset) { return e.at(e.scratch(), offset); };
    // the last panels have most keys: they come first
    V bh = e.div(e.task(), e.i(panels));
    V p = e.sub(e.i(panels - 1), e.rem(e.task(), e.i(panels)));
    V b = e.div(bh, e.i(s.heads)), h = e.rem(bh, e.i(s.heads));
    V kv = e.div(h, e.i(s.heads / s.kv_heads));
    V q0 = e.mul(p, panel), count = e.min(e.sub(e.i(s.q_len), q0), e.i(panel));
    auto view = [&](int buffer, const AttentionView& v, V head, V row) {
      V index = e.add(e.mul(b, v.batch), e.mul(head, v.head));
      return e.at(e.buffer(buffer), e.add(index, e.mul(row, v.row)));
    };
    V zero = e.i(0);
    V next_q = view(0, s.q, h, e.sub(q0, e.i(panel)));
    V q = view(0, s.q, h, q0), o = view(3 + drop, s.o, h, q0);
    V k = nullptr, v = nullptr;
    if (packs(s)) {
      V head = e.add(e.mul(b, s.kv_heads), kv);
      k = e.at(e.buffer(5 + drop),
               e.mul(head, s.k_len * (s.dim + s.value_dim)));
      v = e.at(k, s.k_len * s.dim);
      s.k.row = s.dim, s.v.row = s.value_dim;
    } else {
      k = view(1, s.k, kv, zero), v = view(2, s.v, kv, zero);
    }
    V lse = e.at(e.buffer(4 + drop), e.add(e.mul(bh, s.q_len), q0));
    V qt = part(at.q), pt = part(at.p), ot = part(at.o), stats = part(at.stats);
    auto stat = [&](Stat k) { return e.at(stats, k * panel); };

    Fn pack = pack_function(e, "pack", panel, s.q.row, s.dim, s.scale * kLog2e);
    for (int j = 0; j < vectors; ++j) {
      e.call(pack,
             {e.at(q, j * L * s.q.row), e.at(qt, j * L), e.add(count, -j * L)});
      for (Stat k : {kMax, kNewMax})
        e.vstore(DType::F32, e.splat(e.f(kLowest)), e.at(stat(k), j * L));
      e.vstore(DType::F32, e.zero(Ty::F32, 0), e.at(stat(kSum), j * L));
    }
    zero_fill(e, ot, e.i(s.value_dim * panel));

    const int64_t shift = s.k_len - s.q_len;
    V from = zero, to = e.i(s.k_len);
    if (s.causal) to = e.min(to, e.add(q0, panel + shift));
    if (s.window)
      from = floor_to(e, e.max(zero, e.add(q0, shift - s.window + 1)), 64);
    V key0 = nullptr, key1 = nullptr;
    if (drop) {
      key0 = e.load(DType::U32, e.buffer(3));
      key1 = e.load(DType::U32, e.at(e.buffer(3), 1));
    }
    e.loop(from, to, kKeyBlock, [&](V kb) {
      V block = e.min(e.i(kKeyBlock), e.sub(e.i(s.k_len), kb));
      KeyRange r = key_range(e, s, vectors, q0, kb, block);
      V rel = e.sub(kb, e.add(q0, shift));
      V keys = e.at(k, e.mul(kb, s.k.row));
      for_key_tiles(e, s, r, [&](int R, int C, bool masked, V from, V to) {
        const int skip = (vectors - C) * L;  // the upper lanes alone
        e.call(scores(R, C, masked),
               {keys, e.at(qt, skip), e.at(pt, skip), e.at(stat(kNewMax), skip),
                e.add(rel, -skip), from, to, e.at(v, e.mul(kb, s.v.row))});
      });
      V factors = part(at.keep);
      for (int j = 0; drop && j < vectors; ++j) {
        V row = e.mul(e.add(e.mul(bh, s.q_len), q0), s.k_len);
        e.call(dropout_factors(e, s, panel),
               {e.at(factors, j * L), e.add(e.add(row, j * L * s.k_len), kb),
                r.ends[j], key0, key1});
      }
      Fn soft = soften();
      for (int j = 0; j < vectors; ++j)
        e.call(soft, {e.at(pt, j * L), e.at(stats, j * L), r.ends[j],
                      e.at(factors, j * L)});
      V rows_of_v = e.at(v, e.mul(kb, s.v.row));
      e.call(values(vectors, true),
             {rows_of_v, pt, ot, stat(kAlpha), r.ends[0], next_q, o});
      for (int j = 1; s.causal && j < vectors; ++j) {
        V done = r.ends[j - 1];
        e.if_(e.lt(done, r.ends[j]), [&] {
          e.call(
              values(vectors - j, false),
              {e.at(rows_of_v, e.mul(done, s.v.row)),
               e.at(e.at(pt, j * L), e.mul(done, panel)), e.at(ot, j * L),
               e.at(stat(kAlpha), j * L), e.sub(r.ends[j], done), next_q, o});
        });
      }
    });

    for (int j = 0; j < vectors; ++j) {
      V sum = e.vload(DType::F32, e.at(stat(kSum), j * L));
      V best = e.vload(DType::F32, e.at(stat(kMax), j * L));
      e.vstore(DType::F32, e.fma(best, e.f(kLn2), e.log(sum)), e.at(lse, j * L),
               e.mask(e.add(count, -j * L)));
      e.vstore(DType::F32, e.div(e.f(1), sum), e.at(stat(kAlpha), j * L));
    }
    Fn unpack = unpack_function(e, "unpack", panel, s.o.row, s.value_dim);
    for (int j = 0; j < vectors; ++j)
      e.call(unpack, {e.at(ot, j * L), e.at(stat(kAlpha), j * L),
                      e.at(o, j * L * s.o.row), e.add(count, -j * L)});
  }
};

}  // namespace

int64_t attention_packed_bytes(const AttentionSpec& s, const Target& target) {
  if (splits_forward(s, target)) return 0;
  if (s.bf16) return pairs_packed_bytes(s);
  if (!packs(s)) return 0;
  return 4 * s.batch * s.kv_heads * s.k_len * (s.dim + s.value_dim);
}

KernelSpec attention_pack(const AttentionSpec& s, const Target& target) {
  KernelSpec spec;
  spec.key = attention_key("attention_pack", s);
  spec.bytes = 2.0 * double(attention_packed_bytes(s, target));
  if (s.bf16) {
    emit_pairs_pack(spec, s);
  } else {
    spec.emit = [s](Emit& e) { emit_pack(e, s); };
    spec.tasks =
        s.batch * s.kv_heads * ((s.k_len + kPackedRows - 1) / kPackedRows);
  }
  return spec;
}

KernelSpec attention_forward(const AttentionSpec& s, const Target& target) {
  MOEC_CHECK(s.window == 0 || s.causal);
  const int64_t panel = query_vectors(s, target) * target.lanes;
  const int64_t panels = (s.q_len + panel - 1) / panel;
  const double pairs = attention_pairs(s) * double(s.batch * s.heads);
  KernelSpec spec;
  spec.key = attention_key("attention", s);
  spec.tasks = s.batch * s.heads * panels;
  if (splits_forward(s, target)) {
    emit_split_forward(spec, s);
  } else if (s.bf16) {
    emit_pairs_forward(spec, s, target);
  } else {
    spec.emit = [s](Emit& e) { Forward{e, s}.kernel(); };
    spec.scratch_bytes = 4 * Layout(s, panel).end;
  }
  spec.flops = 2 * pairs * double(s.dim + s.value_dim);
  spec.bytes = (s.bf16 ? 2.0 : 4.0) * double(s.batch) *
               (double(s.heads * s.q_len) * double(s.dim + s.value_dim + 1) +
                double(s.kv_heads * s.k_len) * double(s.dim + s.value_dim));
  return spec;
}

}  // namespace moec
