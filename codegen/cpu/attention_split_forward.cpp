// The forward on f32 in tile registers, operands split (split_f32.h). A task
// holds many panels of queries, for which it splits the keys once, and takes
// them in turn for each block of keys: what vector instructions do for one
// panel, its exponentials, goes on beside the next one's products.
#include <cmath>
#include <numeric>

#include "codegen/cpu/attention_pairs.h"
#include "codegen/cpu/fetch_rows.h"

namespace moec {

namespace {

constexpr int64_t kKeys = 128;      // of a block
constexpr int64_t kPanel = 2 * 16;  // queries, in the lanes
constexpr int64_t kLd = kPanel * 4;

// Rows of a panel's statistics. kMax is of what is summed, in base 2; kBest of
// the scores as they stand.
enum Stat { kMax, kSum, kBest, kAlpha };

// Bytes of a panel: Q^T, f32 O^T, statistics.
struct Panel {
  int64_t q = 0, o, stats, bytes;
  explicit Panel(const AttentionSpec& s) {
    PairSizes n(s);
    o = q + kPanel * n.row_k;
    stats = o + n.value_dim * kLd;
    bytes = stats + 4 * kLd;
  }
};

// The panels of queries that share the packing of keys, of all heads of a
// group: no more than stay in L2, and no fewer tasks than many threads need.
struct Chunks {
  int64_t panels, number;
  explicit Chunks(const AttentionSpec& s) {
    constexpr int64_t kRoom = 700 << 10, kTasks = 32;
    const int64_t all = (s.q_len + kPanel - 1) / kPanel;
    const int64_t group = s.heads / s.kv_heads;
    int64_t room = std::max<int64_t>(1, kRoom / (group * Panel(s).bytes));
    int64_t owners = s.batch * s.kv_heads;
    int64_t wish = std::min((kTasks + owners - 1) / owners, (all + 3) / 4);
    number = std::max((all + room - 1) / room, wish);
    panels = (all + number - 1) / number;
    number = (all + panels - 1) / panels;
  }
};

// Scratch, in bytes: the block's K and V^T, two blocks of scores in turn, P^T,
// dropout factors, panels.
struct Layout {
  int64_t k, v, s, other, p, streams, keep, panels, end;
  int64_t row_v;
  explicit Layout(const AttentionSpec& spec) {
    PairSizes n(spec);
    row_v = transposed_row(kKeys, kSplitPlanes);
    k = 0;
    v = k + kKeys * n.row_k;
    s = v + n.value_dim * row_v;
    other = s + kKeys * kLd;
    p = other + kKeys * kLd;
    streams = p + kKeys / 2 * kLd * kSplitPlanes;
    keep = streams + 64;
    panels = keep + (spec.dropout > 0 ? kKeys * kLd : 0);
    end = panels +
          Chunks(spec).panels * spec.heads / spec.kv_heads * Panel(spec).bytes;
  }
};

struct Forward {
  Emit& e;
  const AttentionSpec& s;
  const int L = e.lanes();
  const PairSizes size{s};
  const Layout at{s};
  const Panel panel{s};
  const Chunks chunks{s};
  const bool drop = s.dropout > 0;
  const int64_t shift = s.k_len - s.q_len;

  // What is read soon, or written.
  enum Stream { kNextK, kNextV, kNextQ, kOutput, kStreams };
  FetchedRows rows_of(int i) const {
    const int64_t group = s.heads / s.kv_heads;
    const int64_t queries = chunks.panels * kPanel;
    // blocks of keys come more often
    if (i == kNextK) return {s.k.row, s.dim, kKeys, 1, 0, 4};
    if (i == kNextV) return {s.v.row, s.value_dim, kKeys, 1, 0, 4};
    if (i == kNextQ) return {s.q.row, s.dim, queries, group, s.q.head};
    return {s.o.row, s.value_dim, queries, group, s.o.head, 2, true};
  }
  V record(V streams, int i) { return e.at(streams, i * kFetchBytes, 1); }
  void start(Stream i, V base) {
    start_fetch(e, record(part(at.streams), i), base);
  }

  V part(int64_t bytes) { return e.at(e.scratch(), bytes, 1); }
  V stat(V unit, Stat k, int j) {
    return e.at(unit, panel.stats + k * kLd + j * L * 4, 1);
  }
  PairProduct product(V a, int64_t lda, V b, V c) {
    PairProduct m{a, lda, b, kLd, c, kLd};
    m.planes = kSplitPlanes;
    m.a_step = m.a_plane * kSplitPlanes;
    return m;
  }

  // Scores of a panel that become weights.
  struct Weights {
    V scores, p, stats, keep;
  };
  // P^T of `n` pairs of keys from the pair `first` on, and their sums, by
  // weigh(S, P, stats, keep).
  void weigh(const Weights& w, V first, int n) {
    Fn f = e.define("weigh", std::vector<Ty>(4, Ty::Ptr), [&](const Vs& a) {
      V factor = e.splat(e.f(pair_factor(s)));
      for (int j = 0; j < 2; ++j) {
        auto stat = [&](Stat k) { return e.at(a[2], k * kPanel + j * L); };
        V down = e.neg(e.vload(DType::F32, stat(kMax)));
        V sum = e.vload(DType::F32, stat(kSum));
        for (int i = 0; i < n; ++i) {
          auto row = [&](V p, int r) {
            V at = e.at(p, (2 * i + r) * kPanel + j * L);
            return e.vload(DType::F32, at);
          };
          Vs x;
          for (int r = 0; r < 2; ++r)
            x.push_back(exp2_fast(e, e.fma(row(a[0], r), factor, down)));
          sum = e.add(sum, e.add(x[0], x[1]));
          for (int r = 0; drop && r < 2; ++r) x[r] = e.mul(x[r], row(a[3], r));
          store_planes(e, split_pair(e, x[0], x[1]),
                       e.at(a[1], i * kPanel + j * L), kPairStep / 2 * kLd, 4);
        }
        e.vstore(DType::F32, sum, stat(kSum));
      }
    });
    auto at = [&](V rows, int64_t ld) {
      return e.at(rows, e.mul(first, ld), 1);
    };
    e.call(f, {at(w.scores, 2 * kLd), at(w.p, kLd), w.stats,
               drop ? at(w.keep, 2 * kLd) : w.keep});
  }

  // step(K, Qt, S, n, before's S, P, stats, keep, n): the scores of n keys, and
  // beside them the weights of the panel before
  Fn step() {
    std::vector<Ty> params(9, Ty::Ptr);
    params[3] = params[8] = Ty::I64;
    return e.define("step", params, [&](const Vs& a) {
      // the steps of a product that do a share of a strip each, in parts
      const int64_t steps = size.dim / kPairStep;
      const int shares = beside_steps(steps);
      const int parts = beside_parts(kSplitPlanes), pairs = kPairStep / 2;
      const int n = pairs / shares / parts;
      auto strip = [&](V k) {
        return Weights{e.at(a[4], e.mul(k, kLd), 1),
                       e.at(a[5], e.mul(k, kLd / 2 * kSplitPlanes), 1), a[6],
                       e.at(a[7], e.mul(k, kLd), 1)};
      };
      e.loop(e.i(0), a[3], kPairStep, [&](V k) {
        PairProduct m = product(e.at(a[0], e.mul(k, size.row_k), 1), size.row_k,
                                a[1], e.at(a[2], e.mul(k, kLd), 1));
        m.beside = [&](V x, int part) {
          V here = e.lt(k, a[8]);
          if (steps > shares)
            here = e.and_(here, e.lt(x, e.i(shares * kPairStep)));
          e.if_(here, [&] {
            V first = e.mul(e.lshr(x, e.i(5)), pairs / shares);
            weigh(strip(k), e.add(first, part * n), n);
          });
        };
        pair_product(e, m, e.i(kPairStep), e.i(size.dim), e.i1(false));
      });
      e.loop(e.min(a[3], a[8]), a[8], kPairStep, [&](V k) {
        e.loop(e.i(0), e.i(pairs), n, [&](V i) { weigh(strip(k), i, n); });
      });
    });
  }

  // maxima(S, stats, rel, left, from, to): of the scores, and masks them
  Fn maxima(bool masked) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64,
                              Ty::I64, Ty::I64, Ty::I64};
    return e.define(masked ? "mm" : "m", params, [&, masked](const Vs& a) {
      Vs best;
      for (int j = 0; j < 2; ++j)
        best.push_back(
            e.vload(DType::F32, e.at(a[1], kBest * kLd + j * L * 4, 1)));
      best = pair_maxima(e, s, a[0], kLd, a[4], a[5], best,
                         masked ? e.i(0) : nullptr, a[2], a[3]);
      for (int j = 0; j < 2; ++j)
        e.vstore(DType::F32, best[j], e.at(a[1], kBest * kLd + j * L * 4, 1));
    });
  }

  // The maximum to subtract, and the factor of what was summed before.
  void rescale(V unit) {
    for (int j = 0; j < 2; ++j) {
      V old = e.vload(DType::F32, stat(unit, kMax, j));
      V m = e.mul(e.vload(DType::F32, stat(unit, kBest, j)),
                  e.splat(e.f(pair_factor(s))));
      m = e.max(e.max(m, e.f(kLowest)), old);
      V alpha = exp2_fast(e, e.sub(old, m));
      V sum = e.vload(DType::F32, stat(unit, kSum, j));
      e.vstore(DType::F32, e.mul(sum, alpha), stat(unit, kSum, j));
      e.vstore(DType::F32, m, stat(unit, kMax, j));
      e.vstore(DType::F32, alpha, stat(unit, kAlpha, j));
    }
  }

  // values(Vt, P, unit, n, streams, opens): Ot = alpha Ot + V^T P over n keys,
  // or V^T P alone
  Fn values() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr,
                              Ty::I64, Ty::Ptr, Ty::I1};
    return e.define("v", params, [&](const Vs& a) {
      V adds = e.not_(a[5]);
      V o = e.at(a[2], panel.o, 1);
      for (int j = 0; j < 2; ++j) {
        V alpha = e.vload(DType::F32, stat(a[2], kAlpha, j));
        V rescales = e.any(e.ne(alpha, e.splat(e.f(1))));
        e.if_(e.and_(adds, rescales), [&] {
          e.loop(e.i(0), e.i(size.value_dim), 4, [&](V d) {
            V row = e.at(e.at(o, e.mul(d, kLd), 1), j * L);
            for (int u = 0; u < 4; ++u) {
              V at = e.at(row, u * kLd, 1);
              e.vstore(DType::F32, e.mul(e.vload(DType::F32, at), alpha), at);
            }
          });
        });
      }
      PairProduct m = product(a[0], at.row_v, a[1], o);
      m.beside = [&](V, int) {
        std::vector<FetchedRows> all;
        for (int i = 0; i < kStreams; ++i) all.push_back(rows_of(i));
        fetch_some(e, a[4], all);
      };
      pair_product(e, m, e.i(size.value_dim), a[3], adds);
    });
  }

  // One panel's share of a block of keys whose weights are not made yet.
  struct Pending {
    V unit, scores, first, end;
    V opens;  // whether it is the panel's first block
  };

  // The scores of the panel `unit` for n keys if there are any, then all that
  // is left of the panel before it.
  void advance(const Pending& before, V unit, V scores, V first, V n) {
    auto from = [&](V p, V k, int64_t row) {
      return e.at(p, e.mul(k, row), 1);
    };
    V p = from(part(at.p), before.first, kLd / 2 * kSplitPlanes);
    V left = e.sub(before.end, before.first);
    e.call(step(),
           {from(part(at.k), first, size.row_k), unit, from(scores, first, kLd),
            n, from(before.scores, before.first, kLd), p,
            e.at(before.unit, panel.stats, 1),
            from(part(at.keep), before.first, kLd), left});
    e.if_(e.gt(left, e.i(0)), [&] {
      e.call(values(), {from(part(at.v), before.first, 2 * kSplitPlanes), p,
                        before.unit, left, part(at.streams), before.opens});
    });
  }

  void kernel() {
    begin_pairs(e);
    const int64_t all = (s.q_len + kPanel - 1) / kPanel;
    const int64_t group = s.heads / s.kv_heads;
    V zero = e.i(0);
    struct Task {
      V b, kv, p0;
    };
    // the last queries have most keys: they come first
    auto task = [&](V i) {
      V owner = e.div(i, e.i(chunks.number));
      V chunk = e.sub(e.i(chunks.number - 1), e.rem(i, e.i(chunks.number)));
      return Task{e.div(owner, e.i(s.kv_heads)), e.rem(owner, e.i(s.kv_heads)),
                  e.mul(chunk, chunks.panels)};
    };
    const Task own = task(e.task()), next = task(e.add(e.task(), 1));
    V b = own.b, kv = own.kv, p0 = own.p0;
    V p1 = e.min(e.add(p0, chunks.panels), e.i(all));
    auto view_of = [&](const Task& t, int buffer, const AttentionView& v,
                       V head) {
      V index = e.add(e.mul(t.b, v.batch), e.mul(head, v.head));
      return e.at(e.buffer(buffer), index);
    };
    auto view = [&](int buffer, const AttentionView& v, V head) {
      return view_of(own, buffer, v, head);
    };
    auto for_panels = [&](V from, V to, Vs carried, auto body) {
      return e.loop(zero, e.i(group), 1, carried, [&](V g, Vs carried) {
        return e.loop(from, to, 1, carried, [&](V p, Vs carried) {
          V index = e.add(e.mul(g, chunks.panels), e.sub(p, p0));
          V unit = e.at(part(at.panels), e.mul(index, panel.bytes), 1);
          V h = e.add(e.mul(kv, group), g);
          return body(h, e.mul(p, kPanel), unit, carried);
        });
      });
    };
    Fn pack =
        pack_columns_function(e, s.q.row, s.dim, s.scale < 0, kSplitPlanes);
    for_panels(p0, p1, {}, [&](V h, V q0, V unit, Vs none) {
      V q = e.at(view(0, s.q, h), e.mul(q0, s.q.row));
      V count = e.sub(e.i(s.q_len), q0);
      for (int j = 0; j < 2; ++j) {
        e.call(pack, {q, count, e.i(j * L), e.at(unit, j * L)});
        e.vstore(DType::F32, e.splat(e.f(kLowest)), stat(unit, kMax, j));
        e.vstore(DType::F32, e.splat(e.f(-INFINITY)), stat(unit, kBest, j));
        e.vstore(DType::F32, e.zero(Ty::F32, 0), stat(unit, kSum, j));
      }
      return none;
    });
    V key0 = nullptr, key1 = nullptr;
    if (drop) {
      key0 = e.load(DType::U32, e.buffer(3));
      key1 = e.load(DType::U32, e.at(e.buffer(3), 1));
    }
    PairRows k_rows{view(1, s.k, kv), s.k.row, e.i(s.k_len), s.dim,
                    kSplitPlanes};
    PairRows v_rows{view(2, s.v, kv), s.v.row, e.i(s.k_len), s.value_dim,
                    kSplitPlanes};
    // the first block of a panel that begins at q0
    auto begins = [&](V q0) {
      if (!s.window) return zero;
      V key = e.add(q0, shift - s.window + 1);
      return e.mul(e.div(e.max(zero, key), e.i(kKeys)), kKeys);
    };
    // as view, of a task's queries
    auto queries = [&](const Task& t, int buffer, const AttentionView& v) {
      V first = view_of(t, buffer, v, e.mul(t.kv, group));
      return e.at(first, e.mul(t.p0, kPanel * v.row));
    };
    start(kNextQ, queries(next, 0, s.q));
    start(kOutput, queries(own, 3 + drop, s.o));
    V to = e.i(s.k_len);
    if (s.causal) to = e.min(to, e.add(e.mul(p1, kPanel), shift));
    e.loop(begins(e.mul(p0, kPanel)), to, kKeys, [&](V kb) {
      V n = e.min(e.i(kKeys), e.sub(e.i(pair_padded(s.k_len)), kb));
      pack_plain(e, k_rows, kb, n, part(at.k), size.row_k);
      pack_transposed(e, v_rows, kb, n, part(at.v), at.row_v);
      V more = e.lt(e.add(kb, kKeys), to);
      auto next_keys = [&](Stream i, const PairRows& here, int buffer,
                           const AttentionView& v) {
        V there = view_of(next, buffer, v, next.kv);
        V first = begins(e.mul(next.p0, kPanel));
        start(i, e.select(more, e.at(here.base, e.mul(e.add(kb, kKeys), v.row)),
                          e.at(there, e.mul(first, v.row))));
      };
      next_keys(kNextK, k_rows, 1, s.k);
      next_keys(kNextV, v_rows, 2, s.v);
      // the panels that see these keys
      V from = p0, end = p1;
      if (s.causal) from = e.max(p0, e.ashr(e.add(kb, -shift), e.i(5)));
      if (s.window)
        end = e.min(p1,
                    e.ashr(e.add(kb, kKeys - shift + s.window - 1 + kPanel - 1),
                           e.i(5)));
      V left = e.sub(e.i(s.k_len), kb);
      auto pending = [&](const Vs& x) {
        return Pending{x[0], x[1], x[3], x[4], x[5]};
      };
      Vs last = {part(at.panels), part(at.s), part(at.other), zero, zero,
                 e.i1(false)};
      last = for_panels(from, end, last, [&](V h, V q0, V unit, Vs x) {
        V rel = e.sub(kb, e.add(q0, shift)), scores = x[2];
        PairRange r = pair_range(e, s, rel, left, kKeys);
        advance(pending(x), unit, scores, r.first, e.sub(r.end, r.first));
        V stats = e.at(unit, panel.stats, 1);
        auto part_of = [&](bool masked, V from, V to) {
          e.call(maxima(masked), {scores, stats, rel, left, from, to});
        };
        if (s.window) part_of(true, r.first, r.low);
        V free = e.max(r.low, r.whole);
        part_of(false, r.low, free);
        part_of(true, free, r.end);
        rescale(unit);
        if (drop) {
          V bh = e.add(e.mul(b, s.heads), h);
          V row = e.mul(e.add(e.mul(bh, s.q_len), q0), s.k_len);
          for (int j = 0; j < 2; ++j)
            e.call(dropout_factors(e, s, kPanel),
                   {e.at(part(at.keep), j * L),
                    e.add(e.add(row, j * L * s.k_len), kb), r.end, key0, key1});
        }
        return Vs{unit, scores, x[1], r.first, r.end, e.eq(kb, begins(q0))};
      });
      advance(pending(last), last[0], last[2], zero, zero);
    });
    std::vector<int> in_order(L);
    std::iota(in_order.begin(), in_order.end(), 0);
    Fn unpack = unpack_columns_function(e, "unpack", s.o.row, s.value_dim,
                                        in_order, kSplitPlanes);
    for_panels(p0, p1, {}, [&](V h, V q0, V unit, Vs none) {
      V o = e.at(view(3 + drop, s.o, h), e.mul(q0, s.o.row));
      V row = e.add(e.mul(e.add(e.mul(b, s.heads), h), s.q_len), q0);
      V lse = e.at(e.buffer(4 + drop), row);
      V count = e.sub(e.i(s.q_len), q0);
      for (int j = 0; j < 2; ++j) {
        V sum = e.vload(DType::F32, stat(unit, kSum, j));
        V m = e.vload(DType::F32, stat(unit, kMax, j));
        V valid = e.add(count, -j * L);
        e.vstore(DType::F32, e.fma(m, e.f(kLn2), e.log(sum)), e.at(lse, j * L),
                 e.mask(valid));
        e.vstore(DType::F32, e.div(e.f(1), sum), stat(unit, kAlpha, j));
        e.call(unpack,
               {e.at(unit, panel.o + j * L * 4, 1), stat(unit, kAlpha, j),
                e.at(o, j * L * s.o.row), valid});
      }
      return none;
    });
    end_pairs(e);
  }
};

}  // namespace

void emit_split_forward(KernelSpec& spec, const AttentionSpec& s) {
  spec.emit = [s](Emit& e) { Forward{e, s}.kernel(); };
  spec.tasks = s.batch * s.kv_heads * Chunks(s).number;
  spec.scratch_bytes = Layout(s).end;
}

}  // namespace moec
