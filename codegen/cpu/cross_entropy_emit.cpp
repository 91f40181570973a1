#include "codegen/cpu/cross_entropy_emit.h"

namespace moec {

namespace {

using Chunk = CrossEntropyChunk;

V scalar_index(Emit& e, V p, V i) {
  return e.sext(e.load(DType::I32, e.at(p, i)), Ty::I64);
}

// Calls f(panel number) for panels from .. to.
void for_panels(Emit& e, V from, V to, const std::function<void(V)>& f) {
  e.loop(from, to, 1, f);
}

// Tiles of `rows` consecutive i in 0 .. n, where n is `block`, or for the last
// block of `size` what is left.
void for_rows(Emit& e, V n, int64_t block, int64_t size, int rows,
              const std::function<void(V, int)>& f) {
  V whole = e.mul(e.div(n, e.i(rows)), rows);
  e.loop(e.i(0), whole, rows, [&](V i) { f(i, rows); });
  const int of_block = int(block % rows), of_last = int(size % block % rows);
  if (of_block && size >= block)
    e.if_(e.eq(n, e.i(block)), [&] { f(whole, of_block); });
  if (of_last) e.if_(e.ne(n, e.i(block)), [&] { f(whole, of_last); });
}

V block_rows(Emit& e, const Chunk& c, V first) {
  return e.min(e.i(c.block), e.sub(e.i(c.spec.vocab), first));
}

}  // namespace

void emit_cross_entropy_pack(Emit& e, const Chunk& c) {
  const int L = e.lanes();
  const int64_t d = c.spec.dim;
  Fn pack = e.define("pack", {Ty::Ptr, Ty::Ptr, Ty::I64}, [&](const Vs& a) {
    pack_rows(e, clamped_rows(e, a[0], d, a[2]), d, a[1], c.panel);
  });
  V first = e.mul(e.task(), c.panel);
  V from = e.at(e.buffer(0), e.mul(first, d));
  V to = e.at(e.buffer(1), e.mul(first, d));
  V valid = e.sub(e.i(c.count), first);
  for (int64_t j = 0; j < c.panel; j += L)
    e.call(pack, {e.at(from, j * d), e.at(to, j), e.add(valid, -j)});
}

namespace {

// lse in base 2, and dloss where there is a target, for lanes from `t` on.
void store_rows(Emit& e, const Chunk& c, V stats, V t, V lse, V dloss,
                V targets) {
  V has_target = e.ge(targets, e.i32(0));
  V zero = e.zero(Ty::F32, 0);
  e.vstore(DType::F32, e.mul(lse, e.f(kLog2e)),
           e.at(e.at(stats, c.stat(Chunk::kLse)), t));
  if (dloss)
    e.vstore(DType::F32, e.select(has_target, dloss, zero),
             e.at(e.at(stats, c.stat(Chunk::kScale)), t));
}

}  // namespace

void emit_cross_entropy_rows(Emit& e, const Chunk& c) {
  e.loop(e.i(0), e.i(c.padded()), e.lanes(), [&](V t) {
    V mask = e.mask(e.sub(e.i(c.count), t));
    store_rows(e, c, e.buffer(3), t,
               e.vload(DType::F32, e.at(e.buffer(2), t), mask),
               e.vload(DType::F32, e.at(e.buffer(1), t), mask),
               e.vload(DType::I32, e.at(e.buffer(0), t), mask));
  });
}

void emit_cross_entropy_logits(Emit& e, const Chunk& c) {
  const int L = e.lanes(), R = tile_rows(e.target());
  const int64_t d = c.spec.dim, panel = c.panel;
  const int vectors = int(panel / L);
  const bool known = c.spec.mode == CrossEntropyMode::Grad;  // lse is there
  V stats = e.buffer(4);
  V first = e.mul(e.task(), c.block), n = block_rows(e, c, first);
  V logits =
      c.keeps_logits() ? e.at(e.buffer(5), e.mul(first, panel)) : e.scratch();
  const int64_t panel_size = c.logit_rows() * panel;
  auto stat = [&](Chunk::Row r) { return e.at(stats, c.stat(r)); };
  V max_row = e.at(stats, e.add(e.mul(e.task(), c.padded()), e.i(c.maxima())));
  V sum_row = e.at(stats, e.add(e.mul(e.task(), c.padded()), e.i(c.sums())));

  // logits(W, bias, Xt, to, row_stats, next): a tile of rows; row_stats is the
  // running maximum, or where the lse is known lse and scale
  auto tile_function = [&](int rows) {
    std::vector<Ty> params(6, Ty::Ptr);
    return e.define("logits" + std::to_string(rows), params, [&](const Vs& a) {
      LaneTile t{rows, vectors, L};
      Vs x = zero_tile(e, t);
      if (c.spec.bias)
        for (int i = 0; i < vectors * rows; ++i)
          x[i] = e.splat(e.load(DType::F32, e.at(a[1], i / vectors)));
      x = tile_product(
          e, t, x, {{a[0], d, 1}}, a[2], panel, e.i(d), nullptr,
          {{a[5], e.i(16)}, {a[3], e.i(spread(rows * panel, d)), 3, true}});
      for (int j = 0; j < vectors; ++j) {
        V p = e.at(a[4], j * L);
        V row = e.vload(DType::F32, p);
        V scale = known ? e.vload(DType::F32, e.at(p, c.padded())) : nullptr;
        for (int i = 0; i < rows; ++i) {
          V v = e.mul(x[vectors * i + j], e.f(kLog2e));
          if (known)
            v = e.mul(exp2_fast(e, e.sub(v, row)), scale);
          else
            row = e.max(v, row);
          e.vstore(DType::F32, v, e.at(a[3], i * panel + j * L));
        }
        if (!known) e.vstore(DType::F32, row, p);
      }
    });
  };
  // sums(logits, max, sum, n): exponentials of n logits of lanes() tokens in
  // place, and their sum
  auto sum_function = [&] {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define("sums", params, [&](const Vs& a) {
      V best = e.vload(DType::F32, a[1]);
      auto step = [&](V i, Vs sums) {
        V p = e.at(a[0], e.mul(i, panel));
        const int n = int(sums.size());  // independent, to be in flight at once
        Vs x;
        for (int u = 0; u < n; ++u)
          x.push_back(exp2_fast(
              e, e.sub(e.vload(DType::F32, e.at(p, u * panel)), best)));
        for (int u = 0; u < n; ++u) {
          if (c.keeps_logits()) e.vstore(DType::F32, x[u], e.at(p, u * panel));
          sums[u] = e.add(sums[u], x[u]);
        }
        return sums;
      };
      V zero = e.zero(Ty::F32, 0), whole = e.mul(e.div(a[3], e.i(4)), 4);
      Vs s = e.loop(e.i(0), whole, 4, {zero, zero, zero, zero}, step);
      V sum = e.add(e.add(s[0], s[1]), e.add(s[2], s[3]));
      s = e.loop(whole, a[3], 1, {sum}, step);
      e.vstore(DType::F32, s[0], a[2]);
    });
  };

  V panels = e.i(c.panels());
  if (!known)
    e.loop(e.i(0), e.i(c.padded()), L, [&](V t) {
      e.vstore(DType::F32, e.splat(e.f(-1e30)), e.at(max_row, t));
    });
  for_rows(e, n, c.block, c.spec.vocab, R, [&](V i, int rows) {
    V row = e.add(first, i);
    V w = e.at(e.buffer(0), e.mul(row, d)), bias = e.at(e.buffer(1), row);
    for_panels(e, e.i(0), panels, [&](V p) {
      // the first panel fetches the next rows
      V next = e.select(e.eq(p, e.i(0)), e.at(w, R * d), w);
      V lane = e.mul(p, panel);
      V of_row = e.at(known ? stat(Chunk::kLse) : max_row, lane);
      e.call(tile_function(rows),
             {w, bias, e.at(e.buffer(3), e.mul(lane, d)),
              e.at(logits, e.add(e.mul(p, panel_size), e.mul(i, panel))),
              of_row, next});
    });
  });
  // the targets' own logits, before the exponentials replace them
  e.loop(e.i(0), e.i(c.count), 1, [&](V t) {
    V row = e.sub(scalar_index(e, e.buffer(2), t), first);
    e.if_(e.and_(e.ge(row, e.i(0)), e.lt(row, n)), [&] {
      V p = e.div(t, e.i(panel)), lane = e.rem(t, e.i(panel));
      V at = e.at(logits,
                  e.add(e.mul(p, panel_size), e.add(e.mul(row, panel), lane)));
      V x = e.load(DType::F32, at);
      if (known)  // p - 1
        e.store(DType::F32,
                e.sub(x, e.load(DType::F32, e.at(stat(Chunk::kScale), t))), at);
      else
        e.store(DType::F32, x, e.at(stat(Chunk::kTarget), t));
    });
  });
  if (known) return;
  for_panels(e, e.i(0), panels, [&](V p) {
    for (int j = 0; j < vectors; ++j) {
      V t = e.add(e.mul(p, panel), j * L);
      e.call(sum_function(), {e.at(logits, e.add(e.mul(p, panel_size), j * L)),
                              e.at(max_row, t), e.at(sum_row, t), n});
    }
  });
}

void emit_cross_entropy_lse(Emit& e, const Chunk& c) {
  V stats = e.buffer(1);
  auto stat = [&](int64_t at, V t) {
    return e.vload(DType::F32, e.at(e.at(stats, at), t));
  };
  V from = e.mul(e.task(), c.panel);
  e.loop(from, e.add(from, c.panel), e.lanes(), [&](V t) {
    V mask = e.mask(e.sub(e.i(c.count), t));
    V blocks = e.i(c.blocks());
    auto row = [&](V b) { return e.add(e.mul(b, c.padded()), t); };
    V best = e.loop(e.i(0), blocks, 1, {e.splat(e.f(-1e30))}, [&](V b, Vs m) {
      return Vs{e.max(stat(c.maxima(), row(b)), m[0])};
    })[0];
    V sum = e.loop(e.i(0), blocks, 1, {e.zero(Ty::F32, 0)}, [&](V b, Vs s) {
      V factor = exp2_fast(e, e.sub(stat(c.maxima(), row(b)), best));
      return Vs{e.fma(stat(c.sums(), row(b)), factor, s[0])};
    })[0];
    V lse = e.fma(best, e.f(kLn2), e.log(sum));
    V targets = e.vload(DType::I32, e.at(e.buffer(0), t), mask);
    V own = e.mul(stat(c.stat(Chunk::kTarget), t), e.f(kLn2));
    V loss =
        e.select(e.ge(targets, e.i32(0)), e.sub(lse, own), e.zero(Ty::F32, 0));
    e.vstore(DType::F32, loss, e.at(e.buffer(2), t), mask);
    e.vstore(DType::F32, lse, e.at(e.buffer(3), t), mask);
    if (c.keeps_logits())
      store_rows(e, c, stats, t, lse,
                 e.vload(DType::F32, e.at(e.buffer(4), t), mask), targets);
  });
}

void emit_cross_entropy_dw(Emit& e, const Chunk& c, bool first_chunk) {
  const int L = e.lanes(), vectors = int(c.panel / L);
  const int64_t d = c.spec.dim, panel = c.panel;
  const LaneTile tile = channel_tile(d, e.target());
  const int64_t panel_size = c.spec.vocab * panel;
  V stats = e.buffer(2);
  V first = e.mul(e.task(), c.block), n = block_rows(e, c, first);
  V logits = e.at(e.buffer(3), e.mul(first, panel));
  auto stat = [&](Chunk::Row r, V t) {
    return e.at(e.at(stats, c.stat(r)), t);
  };
  if (c.spec.mode == CrossEntropyMode::Both) {
    // from e^(x - block maximum) to dloss (p - onehot)
    V max_row =
        e.at(stats, e.add(e.mul(e.task(), c.padded()), e.i(c.maxima())));
    for_panels(e, e.i(0), e.i(c.panels()), [&](V p) {
      V lane = e.mul(p, panel);
      Vs factor;
      for (int j = 0; j < vectors; ++j) {
        V t = e.add(lane, j * L);
        V shift = e.sub(e.vload(DType::F32, e.at(max_row, t)),
                        e.vload(DType::F32, stat(Chunk::kLse, t)));
        factor.push_back(e.mul(exp2_fast(e, shift),
                               e.vload(DType::F32, stat(Chunk::kScale, t))));
      }
      V base = e.at(logits, e.mul(p, panel_size));
      e.loop(e.i(0), n, 1, [&](V i) {
        for (int j = 0; j < vectors; ++j) {
          V at = e.at(base, e.add(e.mul(i, panel), j * L));
          e.vstore(DType::F32, e.mul(e.vload(DType::F32, at), factor[j]), at);
        }
      });
    });
    e.loop(e.i(0), e.i(c.count), 1, [&](V t) {
      V row = e.sub(scalar_index(e, e.buffer(1), t), first);
      e.if_(e.and_(e.ge(row, e.i(0)), e.lt(row, n)), [&] {
        V p = e.div(t, e.i(panel)), lane = e.rem(t, e.i(panel));
        V at = e.at(logits, e.add(e.mul(p, panel_size),
                                  e.add(e.mul(row, panel), lane)));
        e.store(DType::F32,
                e.sub(e.load(DType::F32, at),
                      e.load(DType::F32, stat(Chunk::kScale, t))),
                at);
      });
    });
  }

  // dw(logits, X, dW): rows of dW, over all tokens
  auto rows_function = [&](int rows) {
    std::vector<Ty> params(3, Ty::Ptr);
    return e.define("dw" + std::to_string(rows), params, [&](const Vs& a) {
      auto columns = [&](V col, int C, V mask) {
        LaneTile t{rows, C, L};
        V to = e.at(a[2], col);
        Vs sums = first_chunk ? zero_tile(e, t) : load_tile(e, t, to, d, mask);
        const size_t count = sums.size();
        sums.insert(sums.end(), {a[0], e.at(a[1], col), to});
        auto product = [&](const Vs& x, int64_t steps) {
          // a row of dW for each panel, owned when it is stored
          return tile_product(
              e, t, Vs(x.begin(), x.begin() + count), {{x[count], panel, 1}},
              x[count + 1], d, e.i(steps), mask,
              {{x[count + 2], e.i(spread(t.lanes(), panel)), 3, true}});
        };
        sums = e.loop(e.i(0), e.i(c.count / panel), 1, sums, [&](V, Vs x) {
          Vs next = product(x, panel);
          next.push_back(e.at(x[count], panel_size));
          next.push_back(e.at(x[count + 1], panel * d));
          next.push_back(e.at(x[count + 2], d));
          return next;
        });
        if (c.count % panel) sums = product(sums, c.count % panel);
        sums.resize(count);
        store_tile(e, t, sums, to, d, mask);
      };
      const int wide = tile.lanes();
      const int64_t whole = d / wide * wide;
      e.loop(e.i(0), e.i(whole), wide,
             [&](V k) { columns(k, tile.cols, nullptr); });
      if (int rest = int(d - whole)) {
        int C = (rest + L - 1) / L, last = rest - (C - 1) * L;
        columns(e.i(whole), C, last < L ? e.mask(e.i(last)) : nullptr);
      }
    });
  };
  for_rows(e, n, c.block, c.spec.vocab, tile.rows, [&](V i, int rows) {
    e.call(rows_function(rows), {e.at(logits, e.mul(i, panel)), e.buffer(0),
                                 e.at(e.buffer(4), e.mul(e.add(first, i), d))});
  });
  if (!c.spec.bias) return;
  e.loop(e.i(0), n, 1, [&](V i) {
    V row = e.at(logits, e.mul(i, panel));
    V sum =
        e.loop(e.i(0), e.i(c.count), L, {e.zero(Ty::F32, 0)}, [&](V t, Vs s) {
          V p = e.div(t, e.i(panel)), lane = e.rem(t, e.i(panel));
          V at = e.at(row, e.add(e.mul(p, panel_size), lane));
          V x = e.vload(DType::F32, at, e.mask(e.sub(e.i(c.count), t)));
          return Vs{e.add(s[0], x)};
        })[0];
    V to = e.at(e.buffer(5), e.add(first, i)), total = e.hsum(sum);
    if (!first_chunk) total = e.add(e.load(DType::F32, to), total);
    e.store(DType::F32, total, to);
  });
}

void emit_cross_entropy_dx(Emit& e, const Chunk& c) {
  const int L = e.lanes(), R = tile_rows(e.target());
  const int64_t d = c.spec.dim, panel = c.panel;
  const int64_t panel_size = c.spec.vocab * panel;
  const int64_t splits = (d + Chunk::kChannels - 1) / Chunk::kChannels;
  V group = e.div(e.task(), e.i(splits));
  V from = e.mul(e.rem(e.task(), e.i(splits)), Chunk::kChannels);
  V channels = e.min(e.i(Chunk::kChannels), e.sub(e.i(d), from));
  V p0 = e.mul(group, c.panel_group());
  V p1 = e.min(e.add(p0, c.panel_group()), e.i(c.panels()));
  // X^T is not needed any more: its place takes dX^T
  V xt = e.at(e.buffer(2), e.mul(from, panel));
  auto dx_of = [&](V p) { return e.at(xt, e.mul(p, d * panel)); };
  for_panels(e, p0, p1,
             [&](V p) { zero_fill(e, dx_of(p), e.mul(channels, panel)); });
  // each tile of a panel fetches a part of its next logits; as many share as a
  // task has at least
  const int64_t sharing = (std::min(d, Chunk::kChannels / 2) + R - 1) / R;
  const int64_t slice = (c.block * panel + sharing - 1) / sharing;
  // dx(W, logits, Xt, n, ahead, next): Xt += W^T logits over n rows
  auto tile_function = [&](int rows) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr,
                              Ty::I64, Ty::Ptr, Ty::Ptr};
    return e.define("dx" + std::to_string(rows), params, [&](const Vs& a) {
      LaneTile t{rows, int(panel / L), L};
      Vs sums = load_tile(e, t, a[2], panel);
      sums =
          tile_product(e, t, sums, {{a[0], 1, R}}, a[1], panel, a[3], nullptr,
                       {{a[4], e.i(d)}, {a[5], e.i(spread(slice, c.block))}});
      store_tile(e, t, sums, a[2], panel);
    });
  };
  e.loop(e.i(0), e.i(c.spec.vocab), c.block, [&](V v) {
    V n = block_rows(e, c, v);
    const int64_t pitch = c.dx_pitch(R);
    e.call(pack_tiles(e, "pack", R, d, pitch, int(d % Chunk::kChannels % R)),
           {e.at(e.buffer(0), e.add(e.mul(v, d), from)), e.scratch(), n,
            channels});
    for_rows(e, channels, Chunk::kChannels, d, R, [&](V i, int rows) {
      V w = e.at(e.scratch(), e.mul(e.div(i, e.i(R)), pitch));
      // two tiles fetch a line of the next block's rows, half of them each
      V number = e.div(i, e.i(R)), half = e.and_(number, e.i(1));
      V line = e.add(from, e.mul(e.lshr(number, e.i(1)), 2 * R));
      V row = e.add(e.add(v, c.block), e.mul(half, c.block / 2));
      V ahead = e.at(e.buffer(0), e.add(e.mul(row, d), line));
      V next =
          e.add(e.mul(e.rem(number, e.i(sharing)), slice), c.block * panel);
      for_panels(e, p0, p1, [&](V p) {
        V from_logits = e.add(e.mul(p, panel_size), e.mul(v, panel));
        e.call(
            tile_function(rows),
            {w, e.at(e.buffer(1), from_logits), e.at(dx_of(p), e.mul(i, panel)),
             n, ahead, e.at(e.buffer(1), e.add(from_logits, next))});
      });
    });
  });
  auto unpack_function = [&](int64_t width) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define("unpack" + std::to_string(width), params, [&](const Vs& a) {
      unpack_rows(
          e, a[0], panel, width, nullptr,
          [&](int r) { return e.at(a[1], r * d); }, a[2]);
    });
  };
  auto unpack = [&](int64_t width) {
    for_panels(e, p0, p1, [&](V p) {
      V t = e.mul(p, panel), valid = e.sub(e.i(c.count), t);
      V to = e.at(e.buffer(3), e.add(e.mul(t, d), from));
      for (int64_t j = 0; j < panel; j += L)
        e.call(unpack_function(width),
               {e.at(dx_of(p), j), e.at(to, j * d), e.add(valid, -j)});
    });
  };
  if (d % Chunk::kChannels == 0) return unpack(Chunk::kChannels);
  if (d < Chunk::kChannels) return unpack(d);
  e.if_(
      e.eq(channels, e.i(Chunk::kChannels)), [&] { unpack(Chunk::kChannels); },
      [&] { unpack(d % Chunk::kChannels); });
}

}  // namespace moec
