#include "codegen/cpu/cached_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "codegen/cpu/dot_tile.h"

namespace moec {
namespace {

constexpr int64_t kChunk = 128;  // keys of a task

std::string describe(const char* name, const CachedAttentionSpec& s) {
  return fmt::format(
      "{} b{} t{} h{} kv{} l{} d{}x{} window {} scale {:a} chunk {}", name,
      s.batch, s.queries, s.heads, s.kv_heads, s.length, s.dim, s.value_dim,
      s.window, s.scale, kChunk);
}

// The keys [low, end) that a query sees.
struct Seen {
  V low, end;
};
Seen seen(Emit& e, const CachedAttentionSpec& s, V starts, V b, V t) {
  V start = e.sext(e.load(DType::I32, e.at(starts, b)), Ty::I64);
  V end = e.min(e.max(e.add(e.add(start, t), 1), e.i(1)), e.i(s.length));
  V low = s.window ? e.max(e.sub(end, e.i(s.window)), e.i(0)) : e.i(0);
  return {low, end};
}

// One partial result: the weighted values, then maximum and sum.
int64_t partial_size(const CachedAttentionSpec& s) { return s.value_dim + 2; }

struct Attend {
  Emit& e;
  const CachedAttentionSpec& s;
  const int L = e.lanes();
  const int64_t group = s.group(), pitch = kChunk + L;  // of scores

  V scores(V g) const { return e.at(e.scratch(), e.mul(g, pitch)); }

  // Scores of lanes() keys for all heads of the group; q: of the first.
  void score(const Vs& keys, V q, V to, V mask) const {
    e.loop(e.i(0), e.i(group), 1, [&](V g) {
      DotTile t;
      t.weights = keys;
      t.length = s.dim;
      t.xs = {e.at(q, e.mul(g, s.dim))};
      V x = e.mul(sums_of(e, dot_tile(e, t, zero_sums(e, t))), e.f(s.scale));
      V none = e.f(-std::numeric_limits<float>::infinity());
      if (mask) x = e.select(mask, x, e.splat(none));
      e.vstore(DType::F32, x, e.at(e.scratch(), e.add(e.mul(g, pitch), to)));
    });
  }

  // Rows of lanes() keys or values from `first` on.
  void fetch(V base, V first, int64_t width) const {
    V from = e.at(base, e.mul(first, s.kv_heads * width));
    for (int i = 0; i < L; ++i)
      for (int64_t c = 0; c < width; c += 16)
        e.prefetch(e.at(from, i * s.kv_heads * width + c), 2);
  }

  void all_scores(V k, V v, V q, V count) const {
    const int64_t row = s.kv_heads * s.dim;
    V whole = e.and_(count, e.i(-int64_t(L)));
    auto keys = [&](V first, V last) {
      Vs rows;
      for (int i = 0; i < L; ++i)
        rows.push_back(last ? e.at(k, e.mul(e.min(e.add(first, i), last), row))
                            : e.at(e.at(k, e.mul(first, row)), i * row));
      return rows;
    };
    e.loop(e.i(0), whole, L, [&](V j) {
      // what comes next: keys two blocks on, and the values of these
      fetch(k, e.add(j, 2 * L), s.dim);
      fetch(v, j, s.value_dim);
      score(keys(j, nullptr), q, j, nullptr);
    });
    e.if_(e.lt(whole, count), [&] {
      score(keys(whole, e.add(count, -1)), q, whole,
            e.mask(e.sub(count, whole)));
    });
  }

  // Scores become their exponentials; maximum and sum.
  std::pair<V, V> exponentials(V row, V count) const {
    V low = e.splat(e.f(-std::numeric_limits<float>::infinity()));
    V top = e.loop(e.i(0), count, L, {low}, [&](V j, Vs m) {
      return Vs{e.max(e.vload(DType::F32, e.at(row, j)), m[0])};
    })[0];
    V m = e.hmax(top), all = e.splat(m);
    V sum = e.loop(e.i(0), count, L, {e.zero(Ty::F32, 0)}, [&](V j, Vs a) {
      V p = e.at(row, j);
      V x = e.exp(e.sub(e.vload(DType::F32, p), all));
      e.vstore(DType::F32, x, p);
      return Vs{e.add(a[0], x)};
    })[0];
    return {m, e.hsum(sum)};
  }

  // Heads [g, g + heads): the values weighted by their exponentials.
  void values(V v, V g, int heads, V count, const std::function<V(V)>& out,
              const Vs& factors) const {
    const int64_t row = s.kv_heads * s.value_dim;
    const int vectors = int((s.value_dim + L - 1) / L);
    const int most = e.target().registers >= 32 ? 4 : 2;
    for (int c0 = 0; c0 < vectors; c0 += most) {
      const int n = std::min(most, vectors - c0);
      auto mask = [&](int c) {
        const int64_t left = s.value_dim - int64_t(c0 + c) * L;
        return left < L ? e.mask(e.i(left)) : nullptr;
      };
      Vs acc(size_t(n * heads), e.zero(Ty::F32, 0));
      acc = e.loop(e.i(0), count, 1, acc, [&](V j, Vs a) {
        V from = e.at(e.at(v, e.mul(j, row)), c0 * L);
        Vs p;
        for (int h = 0; h < heads; ++h)
          p.push_back(
              e.splat(e.load(DType::F32, e.at(scores(e.add(g, h)), j))));
        for (int c = 0; c < n; ++c) {
          V x = e.vload(DType::F32, e.at(from, c * L), mask(c));
          for (int h = 0; h < heads; ++h)
            a[size_t(h * n + c)] = e.fma(p[size_t(h)], x, a[size_t(h * n + c)]);
        }
        return a;
      });
      for (int h = 0; h < heads; ++h)
        for (int c = 0; c < n; ++c) {
          V y = acc[size_t(h * n + c)];
          if (!factors.empty()) y = e.mul(y, e.splat(factors[size_t(h)]));
          e.vstore(DType::F32, y, e.at(out(e.add(g, h)), (c0 + c) * L),
                   mask(c));
        }
    }
  }

  // One query t of row b over the keys [from, from + count).
  void query(V b, V kv, V t, V chunk, V from, V count) const {
    V at = e.add(e.mul(b, s.queries), t);
    V head = e.mul(kv, group);
    V first = e.add(e.mul(at, s.heads), head);  // of the heads of all queries
    V key = e.add(e.mul(e.add(e.mul(b, s.length), from), s.kv_heads), kv);
    V v = e.at(e.buffer(2), e.mul(key, s.value_dim));
    all_scores(e.at(e.buffer(1), e.mul(key, s.dim)), v,
               e.at(e.buffer(0), e.mul(first, s.dim)), count);
    const bool partial = s.chunks() > 1;
    auto out = [&](V g) {
      V h = e.add(first, g);
      if (!partial) return e.at(e.buffer(4), e.mul(h, s.value_dim));
      V part = e.add(e.mul(h, s.chunks()), chunk);
      return e.at(e.buffer(4), e.mul(part, partial_size(s)));
    };
    const int most = 4;
    auto heads = [&](V g, int n) {
      Vs factors;
      for (int h = 0; h < n; ++h) {
        V one = e.add(g, h);
        auto [m, sum] = exponentials(scores(one), count);
        if (partial) {
          e.store(DType::F32, m, e.at(out(one), s.value_dim));
          e.store(DType::F32, sum, e.at(out(one), s.value_dim + 1));
        } else {
          factors.push_back(e.div(e.f(1), sum));
        }
      }
      values(v, g, n, count, out, factors);
    };
    const int64_t whole = group / most * most;
    if (whole) e.loop(e.i(0), e.i(whole), most, [&](V g) { heads(g, most); });
    if (whole < group) heads(e.i(whole), int(group - whole));
  }

  void task() const {
    V chunk = e.urem(e.task(), e.i(s.chunks()));
    V pair = e.udiv(e.task(), e.i(s.chunks()));
    V kv = e.urem(pair, e.i(s.kv_heads)), b = e.udiv(pair, e.i(s.kv_heads));
    V first = e.mul(chunk, kChunk);
    e.loop(e.i(0), e.i(s.queries), 1, [&](V t) {
      Seen keys = seen(e, s, e.buffer(3), b, t);
      V from = e.max(first, keys.low);
      V end = e.min(e.add(first, kChunk), keys.end);
      e.if_(e.lt(from, end),
            [&] { query(b, kv, t, chunk, from, e.sub(end, from)); });
    });
  }
};

// Task: one query of one row, all heads.
void combine(Emit& e, const CachedAttentionSpec& s) {
  const int L = e.lanes();
  V b = e.udiv(e.task(), e.i(s.queries)), t = e.urem(e.task(), e.i(s.queries));
  Seen keys = seen(e, s, e.buffer(1), b, t);
  V first = e.udiv(keys.low, e.i(kChunk));
  V end = e.add(e.udiv(e.add(keys.end, -1), e.i(kChunk)), 1);
  const int64_t size = partial_size(s);
  e.loop(e.i(0), e.i(s.heads), 1, [&](V h) {
    V head = e.add(e.mul(e.task(), s.heads), h);
    V parts = e.at(e.buffer(0), e.mul(head, s.chunks() * size));
    auto part = [&](V c) { return e.at(parts, e.mul(c, size)); };
    auto stat = [&](V c, int i) {
      return e.load(DType::F32, e.at(part(c), s.value_dim + i));
    };
    V none = e.f(-std::numeric_limits<float>::infinity());
    V top = e.loop(first, end, 1, {none},
                   [&](V c, Vs m) { return Vs{e.max(stat(c, 0), m[0])}; })[0];
    V sum = e.loop(first, end, 1, {e.f(0)}, [&](V c, Vs a) {
      return Vs{e.fma(e.exp(e.sub(stat(c, 0), top)), stat(c, 1), a[0])};
    })[0];
    V factor = e.div(e.f(1), sum);
    V to = e.at(e.buffer(2), e.mul(head, s.value_dim));
    auto columns = [&](V at, V mask) {
      V y = e.loop(first, end, 1, {e.zero(Ty::F32, 0)}, [&](V c, Vs a) {
        V w = e.splat(e.mul(e.exp(e.sub(stat(c, 0), top)), factor));
        V x = e.vload(DType::F32, e.at(part(c), at), mask);
        return Vs{e.fma(w, x, a[0])};
      })[0];
      e.vstore(DType::F32, y, e.at(to, at), mask);
    };
    const int64_t whole = s.value_dim / L * L;
    if (whole) e.loop(e.i(0), e.i(whole), L, [&](V c) { columns(c, nullptr); });
    if (whole < s.value_dim)
      columns(e.i(whole), e.mask(e.i(s.value_dim - whole)));
  });
}

}  // namespace

int64_t CachedAttentionSpec::chunks() const {
  return std::max<int64_t>(1, (length + kChunk - 1) / kChunk);
}

int64_t CachedAttentionSpec::partial_elements() const {
  if (chunks() == 1) return 0;
  return batch * queries * heads * chunks() * partial_size(*this);
}

KernelSpec cached_attention(const CachedAttentionSpec& s, const Target& t) {
  KernelSpec k;
  k.key = describe("cached_attention", s);
  k.tasks = s.batch * s.kv_heads * s.chunks();
  k.scratch_bytes = s.group() * (kChunk + t.lanes) * 4;
  const double keys = double(s.batch * s.length);
  k.flops = 2 * keys * double(s.queries * s.heads * (s.dim + s.value_dim));
  k.bytes = 4 * keys * double(s.kv_heads * (s.dim + s.value_dim));
  k.emit = [s](Emit& e) { Attend{e, s}.task(); };
  return k;
}

KernelSpec cached_attention_combine(const CachedAttentionSpec& s,
                                    const Target&) {
  KernelSpec k;
  k.key = describe("cached_attention combine", s);
  k.tasks = s.batch * s.queries;
  k.bytes = 4 * double(s.partial_elements());
  k.emit = [s](Emit& e) { combine(e, s); };
  return k;
}

}  // namespace moec
