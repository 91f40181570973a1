// The forward on bf16 pairs. A task is a panel of queries, in the lanes: block
// by block of keys it makes scores, weights of them and their product with the
// values. In tile registers a strip's weights are made beside the next strip's
// scores, and summed beside the products with the values.
#include <cmath>
#include <numeric>

#include "codegen/cpu/attention_pairs.h"
#include "codegen/cpu/fetch_rows.h"

namespace moec {

namespace {

// Scratch, in bytes: Q^T pairs, two strips of f32 scores [kPairStep][panel], a
// block of P^T pairs, f32 O^T [Dv][panel], statistics of the online softmax,
// dropout factors, streams.
struct Layout {
  int64_t q, s, p, o, stats, keep, streams, end;
  Layout(const AttentionSpec& spec, int64_t panel) {
    PairSizes n(spec);
    const int64_t keys = PackedKeys(spec).block_keys;
    q = 0;
    s = q + n.dim * panel * 2;
    p = s + 2 * kPairStep * panel * 4;
    o = p + keys * panel * 2;
    stats = o + n.value_dim * panel * 4;
    keep = stats + 5 * panel * 4;
    streams = keep + (spec.dropout > 0 ? keys * panel * 4 : 0);
    end = streams + 4 * kFetchBytes;
  }
};
// Rows of the statistics. kMax, in base 2, is what weights are taken from, no
// less than the largest; kBest is the largest score of a strip; kOutside is
// that of power_pair_inside.
enum Stat { kMax, kSum, kBest, kAlpha, kOrigin, kOutside = kAlpha };
// What kMax is raised above a score that exceeds it, so that few do.
constexpr double kRoom = 8;

struct Forward {
  Emit& e;
  const AttentionSpec& s;
  const int L = e.lanes(), panel = 2 * L, ld = panel * 4;
  const PairSizes size{s};
  const PackedKeys packed{s};
  const bool drop = s.dropout > 0;
  // dropout needs f32 weights
  const bool integer = e.target().vbmi && !drop;
  // multiplications do not go beside tile products as integers do
  const bool beside = integer && e.target().amx_bf16;

  // What is added to a score times its factor, less the maximum.
  V origin(V max) {
    V down = e.neg(max);
    return integer ? power_origin(e, down) : down;
  }

  // raise(stats, P, n, Ot, d): kMax above kBest; the sums, the weights of n
  // keys of this block and d channels of the output follow
  Fn raise() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr, Ty::I64};
    return e.define("raise", params, [&](const Vs& a) {
      for (int j = 0; j < 2; ++j) {
        auto stat = [&](Stat k) { return e.at(a[0], k * panel + j * L); };
        V old = e.vload(DType::F32, stat(kMax));
        V best = e.mul(e.vload(DType::F32, stat(kBest)),
                       e.splat(e.f(pair_factor(s))));
        V m = e.select(e.gt(best, old), e.add(best, e.f(kRoom)), old);
        V alpha = exp2_fast(e, e.sub(old, m));
        e.vstore(DType::F32, m, stat(kMax));
        e.vstore(DType::F32, origin(m), stat(kOrigin));
        e.vstore(DType::F32, e.mul(e.vload(DType::F32, stat(kSum)), alpha),
                 stat(kSum));
        e.loop(e.i(0), a[2], 2, [&](V k) {
          V at = e.at(e.at(a[1], e.mul(k, ld / 2), 1), j * L);
          V pair = e.load_raw(Ty::I32, at, 0, 4);
          auto scaled = [&](V x) { return e.mul(e.bits(x, Ty::F32), alpha); };
          V low = scaled(e.shl(pair, e.i32(16)));
          V high = scaled(e.and_(pair, e.i32(int64_t(0xffff0000))));
          e.store_raw(round_pair(e, low, high), at, 4);
        });
        e.loop(e.i(0), a[4], 1, [&](V d) {
          V at = e.at(e.at(a[3], e.mul(d, ld), 1), j * L);
          e.vstore(DType::F32, e.mul(e.vload(DType::F32, at), alpha), at);
        });
      }
    });
  }

  // The largest score of a strip, by query, whose keys from `k` on may be
  // masked.
  Vs maxima(V scores, bool masked, V k, V rel, V left) {
    return pair_maxima(e, s, scores, ld, e.i(0), e.i(kPairStep),
                       Vs(2, e.splat(e.f(-INFINITY))), masked ? k : nullptr,
                       rel, left);
  }

  // A strip of keys whose scores become weights.
  struct Strip {
    V scores, p, keep;
    V sums[2] = {}, outside[2] = {};  // addresses
    V origin[2] = {};
  };

  // P = exp2(c S - max) of `pairs` pairs of keys from the key `k` on, and what
  // the sums become, or what lies outside if it is `quick`; without `all`, no
  // query of the first half sees them.
  Vs weigh(const Strip& w, V k, int pairs, bool all, bool quick, Vs sums) {
    V factor = e.splat(e.f(pair_factor(s) * (integer ? kPowerSteps : 1)));
    V from = e.at(w.scores, e.mul(k, ld), 1);
    V to = e.at(w.p, e.mul(k, ld / 2), 1);
    V keep = drop ? e.at(w.keep, e.mul(k, ld), 1) : nullptr;
    for (int i = 0; i < pairs; ++i)
      for (int j = 0; j < 2; ++j) {
        V at = e.at(to, i * ld + j * L * 4, 1);
        if (j == 0 && !all) {
          e.store_raw(e.zero(Ty::I32, 0), at, 4);
          continue;
        }
        auto row = [&](V p, int r) {
          return e.vload(DType::F32, e.at(p, (2 * i + r) * ld + j * L * 4, 1));
        };
        Vs x;
        for (int r = 0; r < 2; ++r)
          x.push_back(e.fma(row(from, r), factor, w.origin[j]));
        if (integer) {
          V pair = quick ? power_pair_inside(e, x[0], x[1], &sums[j])
                         : power_pair(e, x[0], x[1]);
          if (!beside) sums[j] = e.dpbf16(sums[j], pair, ones());
          e.store_raw(pair, at, 4);
          continue;
        }
        for (V& w : x) w = exp2_coarse(e, w);
        sums[j] = e.add(sums[j], e.add(x[0], x[1]));
        for (int r = 0; drop && r < 2; ++r) x[r] = e.mul(x[r], row(keep, r));
        e.store_raw(round_pair(e, x[0], x[1]), at, 4);
      }
    return sums;
  }
  V ones() { return e.splat(e.i32(0x3f803f80)); }
  // The whole strip, whose first queries see `seen` keys at most, a multiple of
  // 4.
  void weigh_seen(const Strip& w, V seen) {
    auto some = [&](bool all) {
      return
          [&, all](V k, Vs sums) { return weigh(w, k, 2, all, false, sums); };
    };
    Vs sums;
    for (V p : w.sums) sums.push_back(e.vload(DType::F32, p));
    sums = e.loop(e.i(0), seen, 4, sums, some(true));
    if (s.causal) sums = e.loop(seen, e.i(kPairStep), 4, sums, some(false));
    for (int j = 0; j < 2; ++j) e.vstore(DType::F32, sums[j], w.sums[j]);
  }

  // The scores of a strip, and beside them the quick weights of `before`, if
  // any.
  void score(V k, V q, V to, const Strip* before) {
    PairProduct m{k, packed.row, q, ld, to, ld};
    // in parts of so many pairs
    const int steps = int(size.dim / kPairStep), parts = beside_steps(steps);
    const int n = int(kPairStep) / 2 / parts;
    if (before)
      m.beside = [&](V x, int) {
        auto body = [&] {
          Vs outside;
          for (V p : before->outside)
            outside.push_back(e.load_raw(Ty::I32, p, 0));
          outside = weigh(*before, e.mul(e.lshr(x, e.i(5)), 2 * n), n, true,
                          true, outside);
          for (int j = 0; j < 2; ++j)
            e.store_raw(outside[j], before->outside[j], 4);
        };
        if (steps == parts) return body();
        e.if_(e.lt(x, e.i(parts * kPairStep)), body);
      };
    pair_product(e, m, e.i(kPairStep), e.i(size.dim), e.i1(false));
  }

  // scores(K, Qt, S): of the first strip
  Fn scores() {
    return e.define("s", std::vector<Ty>(3, Ty::Ptr),
                    [&](const Vs& a) { score(a[0], a[1], a[2], nullptr); });
  }

  // Arguments of the function below, in this order.
  enum Arg {
    kKeysAt,
    kQueriesAt,
    kScores,
    kNextScores,
    kWeights,
    kStats,
    kKeep,
    kOutputs,
    kRel,
    kLeft,
    kChannels,
    kFirst,
    kLow,
    kWhole,
    kEnd,
    kMore,
    kArgs
  };
  V stat(V stats, Stat k, int j) { return e.at(stats, k * panel + j * L); }
  Strip strip(const Vs& a, V scores, V k) {
    Strip w{scores, e.at(a[kWeights], e.mul(k, ld / 2), 1),
            drop ? e.at(a[kKeep], e.mul(k, ld), 1) : nullptr};
    for (int j = 0; j < 2; ++j) {
      w.sums[j] = stat(a[kStats], kSum, j);
      w.outside[j] = stat(a[kStats], kOutside, j);
      w.origin[j] = e.vload(DType::F32, stat(a[kStats], kOrigin, j));
    }
    return w;
  }

  // The weights of any strip.
  void weigh_any(const Vs& a, V scores, V k, V free) {
    auto largest = [&](bool masked) {
      return
          [&, masked] { return maxima(scores, masked, k, a[kRel], a[kLeft]); };
    };
    Vs best = e.if_values(free, largest(false), largest(true));
    V exceeds = nullptr;
    for (int j = 0; j < 2; ++j) {
      V m = e.vload(DType::F32, stat(a[kStats], kMax, j));
      V over = e.gt(e.mul(best[j], e.splat(e.f(pair_factor(s)))), m);
      exceeds = exceeds ? e.or_(exceeds, over) : over;
    }
    e.if_(e.any(exceeds), [&] {
      for (int j = 0; j < 2; ++j)
        e.vstore(DType::F32, best[j], stat(a[kStats], kBest, j));
      V done = e.at(a[kWeights], e.mul(a[kFirst], ld / 2), 1);
      e.call(raise(),
             {a[kStats], done, e.sub(k, a[kFirst]), a[kOutputs], a[kChannels]});
    });
    V seen = e.i(kPairStep);
    if (s.causal)
      seen = clamp(e, ceil_to(e, e.sub(e.i(L), e.add(a[kRel], k)), 4), e.i(0),
                   seen);
    weigh_seen(strip(a, scores, k), seen);
  }

  // weights(...): P of the keys first .. end of a block, of which those low ..
  // whole are not masked; `channels` have an output. Scores of the first strip
  // are there; beside, those of the next block's come last if there are `more`.
  // The two strips of scores take turns.
  Fn weights() {
    std::vector<Ty> params(kArgs, Ty::I64);
    std::fill_n(params.begin(), int(kRel), Ty::Ptr);
    return e.define("w", params, [&](const Vs& a) {
      V first = a[kFirst], end = a[kEnd];
      // any(..., k, free)
      auto any = [&](V scores, V k, V free) {
        if (!beside) return weigh_any(a, scores, k, free);
        std::vector<Ty> types = params;
        types.insert(types.end(), 2, Ty::I64);
        Fn f = e.define("any", types, [&](const Vs& a) {
          weigh_any(a, a[kScores], a[kArgs], e.ne(a[kArgs + 1], e.i(0)));
        });
        Vs args = a;
        args[kScores] = scores;
        args.push_back(k);
        args.push_back(e.select(free, e.i(1), e.i(0)));
        e.call(f, args);
      };
      Vs tiles = {a[kScores], a[kNextScores]};
      e.loop(first, end, kPairStep, tiles, [&](V k, Vs tiles) {
        V next = e.add(k, kPairStep);
        V more = e.lt(next, end);
        if (beside) more = e.or_(more, e.ne(a[kMore], e.i(0)));
        V next_keys = e.at(a[kKeysAt], e.mul(next, packed.row), 1);
        V free = e.lt(k, a[kWhole]);
        if (s.window) free = e.and_(free, e.ge(k, a[kLow]));
        auto alone = [&] {
          e.if_(more, [&] {
            e.call(scores(), {next_keys, a[kQueriesAt], tiles[1]});
          });
          any(tiles[0], k, free);
        };
        if (!beside) {
          alone();
          return Vs{tiles[1], tiles[0]};
        }
        // the first strip of all has no maximum to go by
        V known = e.or_(e.gt(k, first), e.ne(a[kChannels], e.i(0)));
        e.if_(
            e.and_(more, e.and_(free, known)),
            [&] {
              Strip w = strip(a, tiles[0], k);
              for (V p : w.outside) e.store_raw(e.zero(Ty::I32, 0), p, 4);
              score(next_keys, a[kQueriesAt], tiles[1], &w);
              V outside = nullptr;
              for (V p : w.outside) {
                V x = e.load_raw(Ty::I32, p, 0);
                outside = outside ? e.or_(outside, x) : x;
              }
              e.if_(e.any(power_outside(e, outside)),
                    [&] { any(tiles[0], k, e.i1(true)); });
            },
            alone);
        return Vs{tiles[1], tiles[0]};
      });
    });
  }

  // Of the next head's keys and values each of the last panels asks for a
  // share, if two heads' nearly fit in L2: they have fewest of their own.
  const int64_t panels = (s.q_len + panel - 1) / panel;
  const int64_t sharing = s.causal ? (panels + 1) / 2 : panels;
  const bool fits =
      packed.keys * 2 * (size.dim + size.value_dim) <= (5 << 20) / 4;
  const int64_t shared = fits ? (packed.keys + sharing - 1) / sharing : 0;

  // What is read soon, or written: the next panel's queries, this one's output,
  // keys and values of the next head.
  enum Stream { kNextQ, kOutput, kNextK, kNextV, kStreams };
  FetchedRows rows_of(int i) const {
    // in units of f32
    if (i == kNextQ) return {s.q.row / 2, (s.dim + 1) / 2, panel, 1, 0, 4};
    if (i == kOutput)
      return {s.o.row / 2, (s.value_dim + 1) / 2, panel, 1, 0, 4, true};
    if (i == kNextK) return {packed.row / 4, size.dim / 2, shared};
    return {size.value_dim / 2, size.value_dim / 2, shared};
  }
  V record(V streams, int i) { return e.at(streams, i * kFetchBytes, 1); }

  // values(Vt, P, Ot, n, sums, streams): Ot (+)= V^T P over n keys, and beside
  // the sums of P
  Fn values(bool first) {
    std::vector<Ty> params(6, Ty::Ptr);
    params[3] = Ty::I64;
    return e.define(first ? "v0" : "v", params, [&, first](const Vs& a) {
      PairProduct m{a[0], 2 * kPairStep, a[1], ld, a[2], ld, packed.kStep};
      // of every strip of keys so many pairs are added up beside as many
      // channels
      const int strips = int(size.value_dim / kPairStep);
      const int parts = beside_steps(strips), n = int(kPairStep) / 2 / parts;
      e.loop(e.i(0), e.i(size.value_dim), kPairStep, [&](V d) {
        PairProduct some = m;
        some.a = e.at(m.a, e.mul(e.lshr(d, e.i(5)), packed.strip), 1);
        some.c = e.at(m.c, e.mul(d, ld), 1);
        V pairs = e.at(m.b, e.mul(e.lshr(d, e.i(5)), n * ld), 1);
        if (e.target().amx_bf16)
          some.beside = [&](V k, int) {
            auto add = [&] {
              sum_pairs(e.at(pairs, e.mul(k, ld / 2), 1), n, a[4]);
            };
            if (beside && strips == parts)
              add();
            else if (beside)
              e.if_(e.lt(d, e.i(parts * kPairStep)), add);
            for (int i = 0; i < kStreams; ++i)
              fetch_some(e, record(a[5], i), rows_of(i));
          };
        pair_product(e, some, e.i(kPairStep), a[3], e.i1(!first));
      });
    });
  }
  void sum_pairs(V p, int n, V sums) {
    for (int j = 0; j < 2; ++j) {
      V at = e.at(sums, j * L), sum = e.vload(DType::F32, at);
      for (int i = 0; i < n; ++i) {
        V pair = e.load_raw(Ty::I32, e.at(p, i * ld + j * L * 4, 1), 0);
        sum = e.dpbf16(sum, pair, ones());
      }
      e.vstore(DType::F32, sum, at);
    }
  }

  // A task's queries.
  struct Panel {
    V bh, b, h, q0;
  };
  Panel panel_of(V task) {
    // the last panels have most keys: they come first
    V bh = e.div(task, e.i(panels));
    V p = e.sub(e.i(panels - 1), e.rem(task, e.i(panels)));
    return {bh, e.div(bh, e.i(s.heads)), e.rem(bh, e.i(s.heads)),
            e.mul(p, panel)};
  }
  // K and V^T of a head of keys.
  struct Keys {
    V k, vt;
  };
  Keys keys_of(V kv) {
    V at = e.at(e.buffer(5 + drop), e.mul(kv, packed.bytes), 1);
    V b = e.div(kv, e.i(s.kv_heads)), h = e.rem(kv, e.i(s.kv_heads));
    Keys keys{at, e.at(at, packed.v, 1)};
    V index = e.add(e.mul(b, s.k.batch), e.mul(h, s.k.head));
    if (packed.as_it_stands) keys.k = e.at(e.buffer(1), index, 2);
    return keys;
  }
  V rows(const Panel& p, int buffer, const AttentionView& v) {
    V index = e.add(e.mul(p.b, v.batch), e.mul(p.h, v.head));
    return e.at(e.buffer(buffer), e.add(index, e.mul(p.q0, v.row)), 2);
  }

  void kernel() {
    begin_pairs(e);
    const Layout at(s, panel);
    auto part = [&](int64_t bytes) { return e.at(e.scratch(), bytes, 1); };
    const Panel own = panel_of(e.task());
    V bh = own.bh, q0 = own.q0;
    V count = e.min(e.sub(e.i(s.q_len), q0), e.i(panel));
    V q = rows(own, 0, s.q), o = rows(own, 3 + drop, s.o);
    V lse = e.at(e.buffer(4 + drop), e.add(e.mul(bh, s.q_len), q0));
    const int64_t group = s.heads / s.kv_heads;
    V kv = e.div(bh, e.i(group));
    auto [keys, values_t] = keys_of(kv);
    V qt = part(at.q), st = part(at.s), pt = part(at.p), ot = part(at.o);
    V stats = part(at.stats);
    auto stat = [&](Stat k) { return this->stat(stats, k, 0); };
    V zero = e.i(0);
    auto start = [&](Stream i, V p) {
      start_fetch(e, record(part(at.streams), i), p);
    };
    start(kNextQ, rows(panel_of(e.add(e.task(), 1)), 0, s.q));
    start(kOutput, o);
    Keys next = keys_of(e.div(e.add(bh, 1), e.i(group)));
    // own ones, which are near, while it is not this panel's turn
    V turn = e.sub(e.i(sharing - 1), e.div(q0, e.i(panel)));
    auto share = [&](V own, V next, int64_t row) {
      V p = e.at(next, e.mul(turn, shared * row), 1);
      return e.select(e.ge(turn, zero), p, own);
    };
    start(kNextK, share(keys, next.k, packed.row));
    start(kNextV, share(values_t, next.vt, 2 * size.value_dim));

    Fn pack = pack_columns_function(e, s.q.row, s.dim, s.scale < 0, 1);
    for (int j = 0; j < 2; ++j) {
      e.call(pack, {q, count, e.i(j * L), e.at(qt, j * L)});
      V lowest = e.splat(e.f(kLowest));
      e.vstore(DType::F32, lowest, e.at(stat(kMax), j * L));
      e.vstore(DType::F32, origin(lowest), e.at(stat(kOrigin), j * L));
      e.vstore(DType::F32, e.zero(Ty::F32, 0), e.at(stat(kSum), j * L));
    }
    const int64_t shift = s.k_len - s.q_len, block = packed.block_keys;
    V from = zero, to = e.i(s.k_len);
    if (s.causal) to = e.min(to, e.add(q0, panel + shift));
    if (s.window)
      from =
          e.mul(e.div(e.max(zero, e.add(q0, shift - s.window + 1)), e.i(block)),
                block);
    V key0 = nullptr, key1 = nullptr;
    if (drop) {
      key0 = e.load(DType::U32, e.buffer(3));
      key1 = e.load(DType::U32, e.at(e.buffer(3), 1));
    }
    Vs tiles = {st, e.at(st, kPairStep * ld, 1)};
    e.loop(from, to, block, tiles, [&](V kb, Vs tiles) {
      V rel = e.sub(kb, e.add(q0, shift)), left = e.sub(e.i(s.k_len), kb);
      PairRange r = pair_range(e, s, rel, left, block);
      V k = e.at(keys, e.mul(kb, packed.row), 1);
      if (drop) {
        V row = e.mul(e.add(e.mul(bh, s.q_len), q0), s.k_len);
        for (int j = 0; j < 2; ++j)
          e.call(dropout_factors(e, s, panel),
                 {e.at(part(at.keep), j * L),
                  e.add(e.add(row, j * L * s.k_len), kb), r.end, key0, key1});
      }
      V opens = e.eq(kb, from);
      V outputs = e.select(opens, zero, e.i(size.value_dim));
      V more = e.select(e.lt(e.add(kb, block), to), e.i(1), zero);
      e.if_(beside ? opens : e.i1(true), [&] {
        V first = e.at(k, e.mul(r.first, packed.row), 1);
        e.call(scores(), {first, qt, tiles[0]});
      });
      e.call(weights(), {k, qt, tiles[0], tiles[1], pt, stats, part(at.keep),
                         ot, rel, left, outputs, r.first, r.low,
                         e.max(r.low, r.whole), r.end, more});
      V vt = e.at(values_t, e.mul(e.div(kb, e.i(block)), packed.block), 1);
      Vs args = {e.at(vt, e.mul(r.first, 2 * kPairStep), 1),
                 e.at(pt, e.mul(r.first, ld / 2), 1),
                 ot,
                 e.sub(r.end, r.first),
                 stat(kSum),
                 part(at.streams)};
      e.if_(
          opens, [&] { e.call(values(true), args); },
          [&] { e.call(values(false), args); });
      V odd = e.and_(e.sub(r.end, r.first), e.i(kPairStep));
      V even = e.eq(odd, zero);
      return Vs{e.select(even, tiles[0], tiles[1]),
                e.select(even, tiles[1], tiles[0])};
    });
    std::vector<int> in_order(L);
    std::iota(in_order.begin(), in_order.end(), 0);
    Fn unpack =
        unpack_columns_function(e, "unpack", s.o.row, s.value_dim, in_order, 1);
    for (int j = 0; j < 2; ++j) {
      V sum = e.vload(DType::F32, e.at(stat(kSum), j * L));
      V m = e.vload(DType::F32, e.at(stat(kMax), j * L));
      e.vstore(DType::F32, e.fma(m, e.f(kLn2), e.log(sum)), e.at(lse, j * L),
               e.mask(e.add(count, -j * L)));
      e.vstore(DType::F32, e.div(e.f(1), sum), e.at(stat(kAlpha), j * L));
      e.call(unpack, {e.at(ot, j * L), e.at(stat(kAlpha), j * L),
                      e.at(o, j * L * s.o.row, 2), e.add(count, -j * L)});
    }
    end_pairs(e);
  }
};

}  // namespace

void emit_pairs_forward(KernelSpec& spec, const AttentionSpec& s,
                        const Target& target) {
  spec.emit = [s](Emit& e) { Forward{e, s}.kernel(); };
  spec.scratch_bytes = Layout(s, panel_lanes(target)).end;
}

}  // namespace moec
