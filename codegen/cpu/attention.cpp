#include "codegen/cpu/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "codegen/cpu/attention_emit.h"
#include "codegen/cpu/attention_pairs.h"
#include "codegen/cpu/philox.h"
#include "support/error.h"
#include "support/rng.h"

namespace moec {

void AttentionSpec::set_layout(bool rows_outside_heads) {
  auto view = [&](int64_t heads, int64_t rows, int64_t dim) {
    if (rows_outside_heads)
      return AttentionView{rows * heads * dim, dim, heads * dim};
    return AttentionView{heads * rows * dim, rows * dim, dim};
  };
  q = dq = view(heads, q_len, dim);
  k = dk = view(kv_heads, k_len, dim);
  v = dv = view(kv_heads, k_len, value_dim);
  o = view(heads, q_len, value_dim);
}

std::vector<int64_t> key_parts(const AttentionSpec& s) {
  constexpr int64_t kUnit = 256;  // blocks of either kernel
  const int64_t parts = std::clamp<int64_t>(
      8 / (s.batch * s.kv_heads), 1, std::max<int64_t>(s.k_len / 512, 1));
  std::vector<int64_t> at = {0};
  for (int64_t i = 1; i < parts; ++i) {
    double share = double(i) / double(parts);
    if (s.causal && !s.window) share = 1 - std::sqrt(1 - share);
    int64_t key = int64_t(share * double(s.k_len)) / kUnit * kUnit;
    if (key > at.back()) at.push_back(key);
  }
  at.push_back(s.k_len);
  return at;
}

KeyPart key_part(Emit& e, const AttentionSpec& s, V task) {
  const std::vector<int64_t> at = key_parts(s);
  const int64_t parts = int64_t(at.size()) - 1;
  KeyPart p{e.rem(task, e.i(parts)), e.i(at[0]), e.i(at[1])};
  for (int64_t i = 1; i < parts; ++i) {
    V here = e.eq(p.number, e.i(i));
    p.low = e.select(here, e.i(at[i]), p.low);
    p.high = e.select(here, e.i(at[i + 1]), p.high);
  }
  return p;
}

V partial_rows(Emit& e, const AttentionSpec& s, V base, V number, V bh) {
  const int64_t rows = (s.q_len + 31) / 32 * 32;
  V head = e.add(e.mul(number, s.batch * s.heads), bh);
  return e.at(base, e.mul(head, rows * s.dim));
}

int64_t attention_partial_bytes(const AttentionSpec& s) {
  const int64_t parts = int64_t(key_parts(s).size()) - 1;
  const int64_t rows = (s.q_len + 31) / 32 * 32;
  return parts == 1 ? 0 : 4 * parts * s.batch * s.heads * rows * s.dim;
}

KernelSpec attention_sum(const AttentionSpec& s, const Target&) {
  constexpr int64_t kRows = 64;  // of a task
  const int64_t chunks = (s.q_len + kRows - 1) / kRows;
  KernelSpec spec;
  spec.key = attention_key("attention_sum", s);
  spec.tasks = s.batch * s.heads * chunks;
  spec.bytes = double(attention_partial_bytes(s));
  spec.emit = [s, chunks](Emit& e) {
    const int64_t parts = int64_t(key_parts(s).size()) - 1, L = e.lanes();
    V bh = e.div(e.task(), e.i(chunks));
    V from = e.mul(e.rem(e.task(), e.i(chunks)), kRows);
    V to = e.min(e.add(from, kRows), e.i(s.q_len));
    V b = e.div(bh, e.i(s.heads)), h = e.rem(bh, e.i(s.heads));
    const DType dtype = s.bf16 ? DType::BF16 : DType::F32;
    const int64_t size = s.bf16 ? 2 : 4, whole = s.dim / L * L;
    V head = e.add(e.mul(b, s.dq.batch), e.mul(h, s.dq.head));
    std::vector<V> rows;
    for (int64_t i = 0; i < parts; ++i)
      rows.push_back(partial_rows(e, s, e.buffer(0), e.i(i), bh));
    e.loop(from, to, 1, [&](V q) {
      V dq = e.at(e.buffer(1), e.add(head, e.mul(q, s.dq.row)), size);
      auto step = [&](V c, V mask) {
        V at = e.add(e.mul(q, s.dim), c), sum = nullptr;
        for (V row : rows) {
          V x = e.vload(DType::F32, e.at(row, at), mask);
          sum = sum ? e.add(sum, x) : x;
        }
        e.vstore(dtype, sum, e.at(dq, c, size), mask);
      };
      e.loop(e.i(0), e.i(whole), L, [&](V c) { step(c, nullptr); });
      if (whole < s.dim) step(e.i(whole), e.mask(e.i(s.dim - whole)));
    });
  };
  return spec;
}

bool rows_apart(const AttentionSpec& s) {
  constexpr int64_t kApart = 512;  // elements
  bool apart = s.q.row != s.dim || s.k.row != s.dim || s.v.row != s.value_dim ||
               s.o.row != s.value_dim;
  return apart && std::max({s.q.row, s.k.row, s.v.row, s.o.row}) >= kApart;
}

double attention_pairs(const AttentionSpec& s) {
  if (!s.causal) return double(s.q_len) * double(s.k_len);
  double pairs = 0;
  for (int64_t i = 0; i < s.q_len; ++i) {
    int64_t seen = std::max<int64_t>(0, i + s.k_len - s.q_len + 1);
    pairs += double(s.window ? std::min(seen, s.window) : seen);
  }
  return pairs;
}

bool splits_f32(const AttentionSpec& s, const Target& t, double least) {
  if (!t.amx_bf16 || s.bf16) return false;
  const PairSizes n(s);
  const double width = double(s.dim + s.value_dim);
  const double pairs = attention_pairs(s);
  const double group = double(s.heads) / double(s.kv_heads);
  const double each =
      std::min(pairs / double(s.q_len), pairs * group / double(s.k_len));
  return each * width * width / double(n.dim + n.value_dim) >= least;
}

std::string attention_key(const char* kernel, const AttentionSpec& s) {
  auto view = [](const AttentionView& v) {
    return fmt::format("{}:{}:{}", v.batch, v.head, v.row);
  };
  return fmt::format(
      "{} {} b{} h{} kv{} t{}x{} d{}x{} causal={} window={} scale={:a} "
      "drop={:a}/{} views {} {} {} {} {} {} {}",
      kernel, s.bf16 ? "bf16" : "f32", s.batch, s.heads, s.kv_heads, s.q_len,
      s.k_len, s.dim, s.value_dim, int(s.causal), s.window, s.scale, s.dropout,
      s.stream, view(s.q), view(s.k), view(s.v), view(s.o), view(s.dq),
      view(s.dk), view(s.dv));
}

Prefetch fetch_ahead(Emit& e, const AttentionSpec& s, V base, V key,
                     const AttentionView& v, int64_t channels, bool next) {
  auto power = [](int64_t n) { return int64_t(std::bit_floor(uint64_t(n))); };
  const int64_t span = power(std::max<int64_t>(s.dim / 2, 8));
  const int64_t lines = power(std::max<int64_t>(channels / 16, 1));
  V row = floor_to(e, key, span);
  if (next) row = e.add(row, span);
  V line = e.and_(e.lshr(key, e.i(3)), e.i(lines - 1));
  V at = e.add(e.mul(row, v.row), e.mul(line, 16));
  return {e.at(base, at), e.i(v.row), next ? 3 : 2};
}

V floor_to(Emit& e, V n, int64_t multiple) { return e.and_(n, e.i(-multiple)); }
V ceil_to(Emit& e, V n, int64_t multiple) {
  return floor_to(e, e.add(n, multiple - 1), multiple);
}
V clamp(Emit& e, V n, V low, V high) { return e.min(e.max(n, low), high); }

KeyRange key_range(Emit& e, const AttentionSpec& s, int vectors, V q0, V kb,
                   V block) {
  const int R = tile_rows(e.target()), L = e.lanes();
  V zero = e.i(0);
  if (!s.causal) return {Vs(vectors, block), block, zero};
  // position of the panel's first query, counted from the block's first key
  V rel = e.sub(e.add(q0, s.k_len - s.q_len), kb);
  KeyRange r;
  for (int j = 1; j <= vectors; ++j)
    r.ends.push_back(clamp(e, ceil_to(e, e.add(rel, j * L), R), zero, block));
  r.whole = clamp(e, floor_to(e, e.add(rel, 1), R), zero, r.ends.back());
  r.low = zero;
  if (s.window)
    r.low = clamp(e, ceil_to(e, e.add(rel, vectors * L - s.window), R), zero,
                  r.ends[0]);
  return r;
}

void for_key_tiles(Emit& e, const AttentionSpec& s, const KeyRange& r,
                   const TileRange& tiles) {
  const int R = tile_rows(e.target());
  const int rest = int(s.k_len % R), vectors = int(r.ends.size());
  V zero = e.i(0), last = r.ends.back(), end = floor_to(e, last, R);
  V low = e.min(r.low, end), from = e.max(low, e.min(r.whole, end));
  if (s.window) tiles(R, vectors, true, zero, low);
  tiles(R, vectors, false, low, from);
  for (int j = 0; s.causal && j < vectors; ++j) {
    V to = e.max(from, e.min(r.ends[j], end));
    tiles(R, vectors - j, true, from, to);
    from = to;
  }
  if (!rest) return;
  // the last tile of all keys has fewer rows
  if (!s.causal) return tiles(rest, vectors, false, end, last);
  std::function<void(int)> seen_from = [&](int j) {
    auto here = [&] { tiles(rest, vectors - j, true, end, last); };
    if (j + 1 == vectors) return here();
    e.if_(e.gt(r.ends[j], end), here, [&] { seen_from(j + 1); });
  };
  seen_from(0);
}

V lane_mask(Emit& e, const AttentionSpec& s, V rel, int col) {
  const int L = e.lanes();
  V lane = e.add(e.iota(Ty::I32), e.i32(col * L));
  V key = e.splat(e.trunc(rel, Ty::I32));
  V seen = e.le(key, lane);
  if (s.window)
    seen = e.and_(seen, e.lt(e.sub(lane, key), e.splat(e.i32(s.window))));
  return seen;
}

Fn dropout_factors(Emit& e, const AttentionSpec& s, int64_t ld) {
  // Elements come in tiles of 64 (support/rng.h): block 16 t + l of the tile t
  // holds its elements l, l + 16, l + 32 and l + 48.
  const bool aligned = s.k_len % 64 == 0;
  auto body = [&, aligned, ld](const Vs& a) {
    V keep_factor = e.splat(e.f(1.0 / (1.0 - s.dropout)));
    V threshold = e.splat(e.i32(dropout_threshold(s.dropout)));
    V zero = e.zero(Ty::F32, 0);
    const int L = e.lanes();
    auto words = [&](V block) {
      return emit_philox(e, block, {a[3], a[4]}, uint64_t(s.stream));
    };
    auto factor = [&](V word) {
      return e.select(e.ult(word, threshold), zero, keep_factor);
    };
    V lanes = e.mul(e.iota(Ty::I64), e.splat(e.i(s.k_len)));
    V first = e.add(e.splat(a[1]), lanes);
    if (aligned) {
      e.loop(e.i(0), a[2], 64, [&](V k) {
        V tile = e.lshr(e.add(first, e.splat(k)), e.splat(e.i(2)));
        // a block's rounds depend on each other: two blocks take turns
        e.loop(e.i(0), e.i(16), 2, [&](V l) {
          V low = e.add(tile, e.splat(l));
          auto w = words(e.concat(low, e.add(low, e.splat(e.i(1)))));
          V p = e.at(a[0], e.mul(e.add(k, l), ld));
          for (int i = 0; i < 8; ++i) {
            V word = e.slice(w[i / 2], i % 2 * L, L);
            e.vstore(DType::F32, factor(word),
                     e.at(p, (i / 2 * 16 + i % 2) * ld));
          }
        });
      });
      return;
    }
    e.loop(e.i(0), a[2], 1, [&](V k) {
      V index = e.add(first, e.splat(k));
      V block = e.add(e.shl(e.lshr(index, e.splat(e.i(6))), e.splat(e.i(4))),
                      e.and_(index, e.splat(e.i(15))));
      V which = e.and_(e.lshr(e.trunc(index, Ty::I32), e.i32(4)), e.i32(3));
      auto w = words(block);
      V word = w[0];
      for (int i = 1; i < 4; ++i)
        word = e.select(e.eq(which, e.i32(i)), w[i], word);
      e.vstore(DType::F32, factor(word), e.at(a[0], e.mul(k, ld)));
    });
  };
  return e.define("keep", {Ty::Ptr, Ty::I64, Ty::I64, Ty::I32, Ty::I32}, body);
}

Fn pack_function(Emit& e, const std::string& name, int64_t panel,
                 int64_t stride, int64_t cols, double scale) {
  return e.define(name, {Ty::Ptr, Ty::Ptr, Ty::I64}, [&](const Vs& a) {
    pack_rows(e, clamped_rows(e, a[0], stride, a[2]), cols, a[1], panel,
              scale == 1 ? nullptr : e.splat(e.f(scale)), panel * stride);
  });
}

Fn unpack_function(Emit& e, const std::string& name, int64_t panel,
                   int64_t stride, int64_t cols) {
  return e.define(name, {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64}, [&](const Vs& a) {
    V factor = e.vload(DType::F32, a[1]);
    unpack_rows(
        e, a[0], panel, cols, factor,
        [&](int r) { return e.at(a[2], r * stride); }, a[3]);
  });
}

}  // namespace moec
