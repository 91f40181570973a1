// Two phases. Per task_slots() slots of an expert: dA' = W_down^T dO, then dH,
// the weighted activations, the gradient of the combine weights and dX of each
// slot. Then, per expert and block of channels, the weights' gradients as one
// sum over the expert's slots in order.
#include "codegen/cpu/moe_emit.h"

namespace moec {

namespace {

using B = MoeBuffer;

// Scratch, in f32: dO^T and dX^T of the task's panels, combine weights and
// their gradient; a block of features of W_down, then of W_up or W_gate, as
// [tile][k][rows]: walked down a column in place, each line would come from L2
// twice, and the tiles a line apart keep off one set of L1.
struct Layout {
  int64_t g = 0, x, w, dw, packed, end;
  int64_t down_pitch, back_pitch;
  Layout(const MoeSpec& s, int rows)
      : x(g + task_slots(s) * s.dim),
        w(x + task_slots(s) * s.dim),
        dw(w + task_slots(s)),
        packed((dw + task_slots(s) + 15) / 16 * 16),
        down_pitch(s.dim * rows + 16),
        back_pitch(kFeatureBlock * rows + 16) {
    end = packed + std::max(kFeatureBlock / rows * down_pitch,
                            (s.dim + rows - 1) / rows * back_pitch);
  }
};

struct Hidden {
  Emit& e;
  const MoeSpec& s;
  const MoeBuffers buffer;
  const int L = e.lanes(), vectors = wide_vectors(e.target());
  const int panel = vectors * L, rows = tile_rows(e.target());
  const bool gated = is_gated(s.activation);

  // hidden(W_down, Gt, H, dH, A, w, dw, next1, stride1, next2, stride2, next3):
  // dA' of some features; then dw += <dA', A>, dH and A' = w A
  Fn hidden(LaneTile t) {
    std::string name = "hidden" + std::to_string(t.rows) + "_" +
                       std::to_string(t.cols * t.width);
    std::vector<Ty> params(12, Ty::Ptr);
    params[8] = params[10] = Ty::I64;
    return e.define(name, params, [&, t](const Vs& a) {
      // weights, and what the activations read and write
      std::vector<Prefetch> ahead = {
          {a[7], a[8]}, {a[9], a[10]}, {a[11], e.i(16)}};
      V lines = e.i(spread(t.rows * panel, s.dim));
      ahead.push_back({a[2], lines});
      ahead.push_back({a[3], lines, 3, true});
      ahead.push_back({a[4], lines, 3, true});
      if (gated) {
        ahead.push_back({e.at(a[2], s.hidden * panel), lines});
        ahead.push_back({e.at(a[3], s.hidden * panel), lines, 3, true});
      }
      Vs c = tile_product(e, t, zero_tile(e, t), {{a[0], 1, rows}}, a[1], panel,
                          e.i(s.dim), nullptr, ahead);
      for (int j = 0; j < t.cols; ++j) {
        auto load = [&](V base, int64_t at) {
          return e.vload(DType::F32, e.at(base, at + j * t.width), nullptr,
                         t.width);
        };
        auto store = [&](V v, V base, int64_t at) {
          e.vstore(DType::F32, v, e.at(base, at + j * t.width));
        };
        V w = load(a[5], 0), dw = load(a[6], 0);
        for (int i = 0; i < t.rows; ++i) {
          const int64_t up = i * panel, gate = up + s.hidden * panel;
          V da = c[i * t.cols + j];
          ActivationGrad f =
              activate_grad(e, s.activation, gated ? load(a[2], gate) : nullptr,
                            load(a[2], up));
          dw = e.fma(da, f.value, dw);
          da = e.mul(da, w);
          store(e.mul(f.value, w), a[4], up);
          store(e.mul(da, f.by_up), a[3], up);
          if (gated) store(e.mul(da, f.by_gate), a[3], gate);
        }
        store(dw, a[6], 0);
      }
    });
  }

  // back(W, dH, Xt, n, ahead): Xt += W^T dH over n features
  Fn back(LaneTile t) {
    std::string name = "back" + std::to_string(t.rows) + "_" +
                       std::to_string(t.cols * t.width);
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
    return e.define(name, params, [&, t](const Vs& a) {
      Vs c = load_tile(e, t, a[2], panel);
      V lines = e.i(spread(rows * panel, kFeatureBlock));
      c = tile_product(e, t, c, {{a[0], 1, rows}}, a[1], panel, a[3], nullptr,
                       {{a[4], lines, 3, true}});
      store_tile(e, t, c, a[2], panel);
    });
  }

  // The combine weights of a panel's lanes, 0 past the last slot; their
  // gradient starts with what the bias of W_down contributes.
  void start(const ExpertTask& t, V first, V valid, V g, V w, V dw) {
    load_slot_weights(e, buffer, t, first, valid, panel, w);
    V bias = e.at(buffer(B::BiasDown), e.mul(t.expert, s.dim));
    for (int j = 0; j < vectors; ++j) {
      V sum = e.zero(Ty::F32, 0);
      if (s.bias)
        sum = e.loop(e.i(0), e.i(s.dim), 1, {sum}, [&](V c, Vs sum) {
          V b = e.load(DType::F32, e.at(bias, c));
          V dy = e.vload(DType::F32, e.at(g, e.add(e.mul(c, panel), j * L)));
          return Vs{e.fma(e.splat(b), dy, sum[0])};
        })[0];
      e.vstore(DType::F32, sum, e.at(dw, j * L));
    }
  }

  void task(const ExpertTask& t) {
    const Layout at(s, rows);
    auto part = [&](int64_t offset) { return e.at(e.scratch(), offset); };
    V first_weight = e.mul(t.expert, s.hidden * s.dim);
    V w_up = e.at(buffer(B::Up), first_weight);
    V w_gate = e.at(buffer(gated ? B::Gate : B::Up), first_weight);
    V w_down = e.at(buffer(B::Down), first_weight);
    V at_h = e.mul(t.panel, s.hidden_rows() * panel);
    V saved = e.at(buffer(B::Saved), at_h);
    V dhidden = e.at(buffer(B::DHidden), at_h);
    V activated = e.at(buffer(B::Activated), e.mul(t.panel, s.hidden * panel));
    auto for_panels = [&](const std::function<void(V, V)>& f) {
      e.loop(e.i(0), t.count, panel, [&](V first) {
        f(first, e.min(e.sub(t.count, first), e.i(panel)));
      });
    };
    Fn gather = gather_function(e, "gather", s.top_k, s.dim);
    for_panels([&](V first, V valid) {
      V to = e.at(part(at.g), e.mul(first, s.dim));
      V perm = e.at(buffer(B::Perm), e.add(t.slot, first));
      // all vectors: the bias' part of dw reads all lanes
      for (int j = 0; j < panel; j += L)
        e.call(gather,
               {buffer(B::Dy), e.at(perm, j), e.add(valid, -j), e.at(to, j)});
      start(t, first, valid, to, e.at(part(at.w), first),
            e.at(part(at.dw), first));
    });
    zero_fill(e, part(at.x), e.i(task_slots(s) * s.dim));

    e.loop(e.i(0), e.i(s.hidden), kFeatureBlock, [&](V f) {
      V n = e.min(e.sub(e.i(s.hidden), f), e.i(kFeatureBlock));
      V packed = part(at.packed);
      e.call(pack_tiles(e, "pack_down", rows, s.hidden, at.down_pitch,
                        int(s.hidden % rows)),
             {e.at(w_down, f), packed, e.i(s.dim), n});
      auto hidden_tiles = [&](V i, int tile_rows) {
        V at_f = e.add(f, i);
        // meanwhile the rows of W_up and W_gate of this block, and half a
        // column of lines of the next block of W_down
        V w = e.mul(at_f, s.dim), number = e.div(i, e.i(rows));
        V line = e.and_(e.lshr(number, e.i(1)), e.i(kFeatureBlock / 16 - 1));
        line = e.mul(line, 16);
        V row = e.mul(e.and_(number, e.i(1)), s.dim / 2 * s.hidden);
        V next_down =
            e.at(w_down, e.add(e.add(f, kFeatureBlock), e.add(line, row)));
        V next_up = e.at(w_up, w), next_gate = e.at(w_gate, w);
        V one = e.le(t.count, e.i(panel)), many = e.gt(t.count, e.i(2 * panel));
        for_panels([&](V first, V valid) {
          // a stream for each panel, as far as there are so many
          V is_first = e.eq(first, e.i(0)), second = e.eq(first, e.i(panel));
          V rows = e.or_(is_first, second);
          V weights_of = e.select(is_first, next_up, next_gate);
          V next1 = e.select(rows, weights_of, next_down);
          V stride1 = e.select(rows, e.i(16), e.i(s.hidden));
          V next2 = e.select(many, next1, next_down);
          V stride2 = e.select(many, stride1, e.i(s.hidden));
          V next3 = e.select(one, next_gate, weights_of);
          V g = e.at(part(at.g), e.mul(first, s.dim));
          V row = e.mul(first, s.hidden_rows());
          V h = e.at(e.at(saved, row), e.mul(at_f, panel));
          V dh = e.at(e.at(dhidden, row), e.mul(at_f, panel));
          V a =
              e.at(e.at(activated, e.mul(first, s.hidden)), e.mul(at_f, panel));
          V weights = e.at(part(at.w), first), dw = e.at(part(at.dw), first);
          for_lane_tiles(e, valid, [&](LaneTile t, int lane) {
            t.rows = tile_rows;
            e.call(hidden(t),
                   {e.at(packed, e.mul(number, at.down_pitch)), e.at(g, lane),
                    e.at(h, lane), e.at(dh, lane), e.at(a, lane),
                    e.at(weights, lane), e.at(dw, lane), next1, stride1, next2,
                    stride2, next3});
          });
        });
      };
      V whole = e.mul(e.div(n, e.i(rows)), rows);
      e.loop(e.i(0), whole, rows, [&](V i) { hidden_tiles(i, rows); });
      if (int rest = int(s.hidden % rows))
        e.if_(e.lt(whole, n), [&] { hidden_tiles(whole, rest); });

      for (int half = 0; half < (gated ? 2 : 1); ++half) {
        e.call(pack_tiles(e, "pack_back", rows, s.dim, at.back_pitch,
                          int(s.dim % rows)),
               {e.at(half ? w_gate : w_up, e.mul(f, s.dim)), packed, n,
                e.i(s.dim)});
        // a panel's dH of these features stays in L1
        for_panels([&](V first, V valid) {
          V dh = e.at(e.at(dhidden, e.mul(first, s.hidden_rows())),
                      e.mul(e.add(f, half * s.hidden), panel));
          V x = e.at(part(at.x), e.mul(first, s.dim));
          auto back_tile = [&](V c, int tile_rows) {
            V from = e.at(packed, e.mul(e.div(c, e.i(rows)), at.back_pitch));
            V to = e.at(x, e.mul(c, panel));
            // the last block fetches the rows that will be stored
            V row = e.mul(e.add(t.slot, first), s.dim);
            V last = e.ge(e.add(f, kFeatureBlock), e.i(s.hidden));
            V ahead = e.select(
                last, e.at(buffer(B::Rows), e.add(row, e.mul(c, panel))), to);
            for_lane_tiles(e, valid, [&](LaneTile t, int lane) {
              t.rows = tile_rows;
              e.call(back(t), {from, e.at(dh, lane), e.at(to, lane), n, ahead});
            });
          };
          const int64_t c = s.dim / rows * rows;
          if (c) e.loop(e.i(0), e.i(c), rows, [&](V c) { back_tile(c, rows); });
          if (c < s.dim) back_tile(e.i(c), int(s.dim - c));
        });
      }
    });

    for_panels([&](V first, V valid) {
      V x = e.at(part(at.x), e.mul(first, s.dim));
      V slot = e.add(t.slot, first);
      V to = e.at(buffer(B::Rows), e.mul(slot, s.dim));
      Fn scatter = scatter_function(e, s.dim);
      for (int j = 0; j < panel; j += L)
        e.call(scatter, {e.at(x, j), e.at(to, j * s.dim), e.add(valid, -j)});
      V dw = e.at(part(at.dw), first);
      e.loop(e.i(0), valid, 1, [&](V lane) {
        V choice = e.load(DType::I32, e.at(buffer(B::Perm), e.add(slot, lane)));
        e.store(DType::F32, e.load(DType::F32, e.at(dw, lane)),
                e.at(buffer(B::DWeights), e.sext(choice, Ty::I64)));
      });
    });
  }
};

// ---- gradients of the weights

// Most slots gathered at a time; more of an expert's are cut evenly and
// accumulated. So few that their rows stay near L1 and that each panel of dH is
// one stream of memory.
constexpr int64_t kGatheredSlots = 576;  // whole panels on every target

// Scratch, in f32, for each tile's width of channels of a task: gathered rows
// [slot][width], and sums of W_down's gradient [feature][width], which is
// stored transposed.
struct WeightLayout {
  int64_t block;  // channels of a task
  int64_t r = 0, sums, end;
  WeightLayout(const MoeSpec& s, int64_t width) {
    const int64_t parts = expert_weights(s);
    // wide blocks read dH less often, if enough tasks remain
    block = 4 * width;
    if (s.experts * parts * blocks(s) < 16) block = 2 * width;
    sums = r + kGatheredSlots * block;
    end = sums + s.hidden * block;
  }
  int64_t blocks(const MoeSpec& s) const { return (s.dim + block - 1) / block; }
};

struct Weights {
  Emit& e;
  const MoeSpec& s;
  const MoeBuffers buffer;
  const int L = e.lanes(), panel = wide_panel(e.target());  // of slots
  const LaneTile tile = channel_tile(s.dim, e.target());
  const int rows = tile.rows, vectors = tile.cols, wide = vectors * L;

  Vs masks_of(V width) {
    Vs masks;
    for (int j = 0; j < vectors; ++j)
      masks.push_back(e.mask(e.add(width, -j * L)));
    return masks;
  }

  // collect(src, perm, R, n, width): R[slot][wide] = `width` columns of the
  // slots' rows, padded by zeros
  Fn collect() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64};
    return e.define("collect", params, [&](const Vs& a) {
      const Vs masks = masks_of(a[4]);
      auto row_of = [&](V slot) {
        V choice = e.zext(e.load(DType::I32, e.at(a[1], slot)), Ty::I64);
        return e.at(a[0], e.mul(e.udiv(choice, e.i(s.top_k)), s.dim));
      };
      V last = e.add(a[3], -1);
      e.loop(e.i(0), a[3], 1, [&](V slot) {
        V later = row_of(e.min(e.add(slot, 16), last));
        for (int j = 0; j < vectors; ++j) e.prefetch(e.at(later, j * L));
        V from = row_of(slot), to = e.at(a[2], e.mul(slot, wide));
        for (int j = 0; j < vectors; ++j)
          e.vstore(DType::F32, e.vload(DType::F32, e.at(from, j * L), masks[j]),
                   e.at(to, j * L));
      });
    });
  }

  // Sum over `n` slots of G[panel][feature][slot] R[slot][column].
  Vs slot_sum(LaneTile t, Vs sums, V g, int64_t panel_stride, V r, V n) {
    V panels = e.div(n, e.i(panel));
    const size_t count = sums.size();
    auto product = [&](const Vs& c, V steps) {
      // meanwhile the next features of this panel, 8 to a stream
      std::vector<Prefetch> ahead;
      for (int i = 0; i < t.rows; i += 8)
        ahead.push_back({e.at(c[count], (t.rows + i) * panel), e.i(16)});
      return tile_product(e, t, Vs(c.begin(), c.begin() + count),
                          {{c[count], panel, 1}}, c[count + 1], wide, steps,
                          nullptr, ahead);
    };
    sums.insert(sums.end(), {g, r});
    sums = e.loop(e.i(0), panels, 1, sums, [&](V, Vs c) {
      Vs next = product(c, e.i(panel));
      next.push_back(e.at(c[count], panel_stride));
      next.push_back(e.at(c[count + 1], panel * wide));
      return next;
    });
    return product(sums, e.sub(n, e.mul(panels, panel)));
  }

  // sum(G, R, C, n, width, first, stream): C[feature][column] of some features
  // and `width` columns, added to what is there unless this is the first sum.
  Fn sum(int features, int64_t panel_stride, int64_t ldc) {
    std::string name = "sum" + std::to_string(features) + "_" +
                       std::to_string(panel_stride) + "_" + std::to_string(ldc);
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64,
                              Ty::I64, Ty::I1,  Ty::I1};
    return e.define(name, params, [&, features](const Vs& a) {
      const LaneTile t{features, vectors, L};
      Vs x = slot_sum(t, zero_tile(e, t), a[0], panel_stride, a[1], a[3]);
      auto each = [&](const std::function<void(V x, V to, int j)>& f) {
        for (int i = 0; i < t.rows; ++i)
          for (int j = 0; j < t.cols; ++j)
            f(x[i * t.cols + j], e.at(a[2], i * ldc + j * L), j);
      };
      auto masked = [&] {
        const Vs masks = masks_of(a[4]);
        each([&](V x, V to, int j) {
          V old = e.vload(DType::F32, to, masks[j], L);
          old = e.select(a[5], e.zero(Ty::F32, 0), old);
          e.vstore(DType::F32, e.add(old, x), to, masks[j]);
        });
      };
      auto add = [&] {
        each([&](V x, V to, int) {
          e.vstore(DType::F32, e.add(e.vload(DType::F32, to), x), to);
        });
      };
      auto store = [&] {
        each([&](V x, V to, int) { e.vstore(DType::F32, x, to); });
      };
      auto stream = [&] {
        each([&](V x, V to, int) { e.vstore_stream(DType::F32, x, to); });
      };
      e.if_(e.lt(a[4], e.i(wide)), masked,
            [&] { e.if_(a[5], [&] { e.if_(a[6], stream, store); }, add); });
    });
  }

  // flip(C, W, features, columns): W[column][feature] = C[feature][column] for
  // up to lanes() of each.
  Fn flip() {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64};
    return e.define("flip", params, [&](const Vs& a) {
      Vs rows;
      for (V row : clamped_rows(e, a[0], wide, a[2]))
        rows.push_back(e.vload(DType::F32, row));
      rows = e.transpose(rows);
      V mask = e.mask(a[2]);
      for (int k = 0; k < L; ++k)
        e.if_(e.lt(e.i(k), a[3]), [&] {
          e.vstore(DType::F32, rows[k], e.at(a[1], k * s.hidden), mask);
        });
    });
  }

  // dBias[feature] = sum of the feature's row over n slots.
  void row_sums(V g, int64_t panel_stride, V n, V to) {
    e.loop(e.i(0), e.i(s.hidden), 1, [&](V f) {
      V sum = e.loop(e.i(0), n, panel, {e.zero(Ty::F32, 0)}, [&](V slot, Vs x) {
        V row = e.at(g, e.add(e.mul(e.div(slot, e.i(panel)), panel_stride),
                              e.mul(f, panel)));
        for (int j = 0; j < panel / L; ++j)
          x[0] = e.add(x[0], e.vload(DType::F32, e.at(row, j * L),
                                     e.mask(e.sub(n, e.add(slot, j * L)))));
        return x;
      })[0];
      e.store(DType::F32, e.hsum(sum), e.at(to, f));
    });
  }

  // dBias[column] += sum of w[slot] R[slot][column].
  void column_sums(V r, V weights, V n, V width, V to, V first) {
    for (int j = 0; j < vectors; ++j) {
      V mask = e.mask(e.add(width, -j * L));
      V old = e.vload(DType::F32, e.at(to, j * L), mask);
      V sum = e.select(e.splat(first), e.zero(Ty::F32, 0), old);
      sum = e.loop(e.i(0), n, 1, {sum}, [&](V slot, Vs x) {
        V w = e.splat(e.load(DType::F32, e.at(weights, slot)));
        V row = e.at(r, e.add(e.mul(slot, wide), j * L));
        return Vs{e.fma(w, e.vload(DType::F32, row), x[0])};
      })[0];
      e.vstore(DType::F32, sum, e.at(to, j * L), mask);
    }
  }

  void task(int which, V expert, V column) {
    const ExpertWeight p = expert_weight(s, which);
    const bool down = which == 0;
    ExpertTask t =
        whole_expert(e, slot_cut(s, e.target()), buffer(B::Offsets), expert);
    const int64_t panel_stride = p.feature_rows * panel;
    V weight = e.at(buffer(p.weight), e.mul(expert, s.hidden * s.dim));
    V g0 = e.at(buffer(p.product),
                e.add(e.mul(t.panel, panel_stride), e.i(p.first_row * panel)));
    if (s.bias && !down)
      e.if_(e.eq(column, e.i(0)), [&] {
        row_sums(g0, panel_stride, t.count,
                 e.at(buffer(p.bias), e.mul(expert, s.hidden)));
      });
    const WeightLayout at(s, wide);
    auto part_of = [&](int64_t offset, V half, int64_t size) {
      return e.at(e.at(e.scratch(), offset), e.mul(half, size));
    };
    V left = e.min(e.sub(e.i(s.dim), column), e.i(at.block));
    auto for_halves = [&](const std::function<void(V half, V c, V n)>& f) {
      e.loop(e.i(0), e.ceil_div(left, wide), 1, [&](V half) {
        V c = e.mul(half, wide);
        f(half, e.add(column, c), e.min(e.sub(left, c), e.i(wide)));
      });
    };
    // one chunk for an expert without slots, whose gradient is zero
    V chunks = e.max(e.ceil_div(t.count, kGatheredSlots), e.i(1));
    V step = e.mul(chunks, panel);
    V chunk = e.mul(e.div(e.add(t.count, e.add(step, -1)), step), panel);
    // written once and not read again soon: past the caches
    V streams = e.and_(e.eq(chunks, e.i(1)), e.i1(!down && s.dim % L == 0));
    e.loop(e.i(0), chunks, 1, [&](V number) {
      V from = e.mul(number, chunk), first = e.eq(number, e.i(0));
      V n = e.min(e.sub(t.count, from), chunk), slot = e.add(t.slot, from);
      V g = e.at(g0, e.mul(e.div(from, e.i(panel)), panel_stride));
      for_halves([&](V half, V c, V width) {
        V r = part_of(at.r, half, kGatheredSlots * wide);
        e.call(collect(), {e.at(buffer(p.source), c),
                           e.at(buffer(B::Perm), slot), r, n, width});
        if (s.bias && down)
          column_sums(r, e.at(buffer(B::SlotWeights), slot), n, width,
                      e.at(buffer(p.bias), e.add(e.mul(expert, s.dim), c)),
                      first);
      });
      auto tiles = [&](V f, int features) {
        for_halves([&](V half, V c, V width) {
          const int64_t ldc = down ? wide : s.dim;
          V to =
              down ? part_of(at.sums, half, s.hidden * wide) : e.at(weight, c);
          V r = part_of(at.r, half, kGatheredSlots * wide);
          e.call(sum(features, panel_stride, ldc),
                 {e.at(g, e.mul(f, panel)), r, e.at(to, e.mul(f, ldc)), n,
                  down ? e.i(wide) : width, first, streams});
        });
      };
      const int64_t whole = s.hidden / rows * rows;
      e.loop(e.i(0), e.i(whole), rows, [&](V f) { tiles(f, rows); });
      if (whole < s.hidden) tiles(e.i(whole), int(s.hidden - whole));
    });
    e.fence();  // streamed rows are visible before the launch ends
    if (!down) return;
    for_halves([&](V half, V c, V width) {
      V sums = part_of(at.sums, half, s.hidden * wide);
      e.loop(e.i(0), e.i(s.hidden), L, [&](V f) {
        for (int j = 0; j < vectors; ++j) {
          V to = e.add(e.mul(e.add(c, j * L), s.hidden), f);
          e.call(flip(),
                 {e.at(sums, e.add(e.mul(f, wide), j * L)), e.at(weight, to),
                  e.sub(e.i(s.hidden), f), e.add(width, -j * L)});
        }
      });
    });
  }

  void kernel() {
    const WeightLayout at(s, wide);
    const int64_t block = at.block, blocks = at.blocks(s);
    V which = e.rem(e.task(), e.i(expert_weights(s)));
    V rest = e.div(e.task(), e.i(expert_weights(s)));
    V column = e.mul(e.rem(rest, e.i(blocks)), block);
    V expert = e.div(rest, e.i(blocks));
    for (int i = 0; i < expert_weights(s); ++i)
      e.if_(e.eq(which, e.i(i)), [&] { task(i, expert, column); });
  }
};

}  // namespace

std::vector<MoeLaunch> moe_backward(const MoeSpec& s, const Target& target,
                                    const MoeEpilogue& epilogue) {
  if (s.bf16) return moe_pair_backward(s, epilogue);
  const double product = 2.0 * double(s.slots()) * double(s.dim);
  MoeLaunch hidden;
  hidden.buffers = {B::Dy,       B::Weights, B::Offsets,   B::Perm,
                    B::Up,       B::Gate,    B::Down,      B::BiasDown,
                    B::Saved,    B::DHidden, B::Activated, B::SlotWeights,
                    B::DWeights, B::Rows};
  hidden.spec.key = moe_key("moe experts_grad", s);
  hidden.spec.tasks = expert_tasks(s, task_slots(s));
  hidden.spec.scratch_bytes = 4 * Layout(s, tile_rows(target)).end;
  hidden.spec.flops = product * double(s.hidden_rows() + s.hidden);
  hidden.spec.bytes =
      4.0 * (double(s.experts * s.dim) * double(s.hidden_rows() + s.hidden) +
             double(s.slots()) * double(2 * s.dim) + 2.5 * double(s.saved()));
  hidden.spec.emit = [s, list = hidden.buffers](Emit& e) {
    Hidden h{e, s, {e, list}};
    for_expert_task(e, s, slot_cut(s, e.target()), h.buffer(B::Offsets),
                    [&](const ExpertTask& t) { h.task(t); });
  };

  MoeLaunch weights;
  weights.buffers = {B::X,        B::Dy,        B::Offsets,     B::Perm,
                     B::DHidden,  B::Activated, B::SlotWeights, B::DUp,
                     B::DGate,    B::DDown,     B::DBiasUp,     B::DBiasGate,
                     B::DBiasDown};
  const WeightLayout layout(s, channel_tile(s.dim, target).lanes());
  weights.spec.key = moe_key("moe weights_grad", s);
  weights.spec.tasks = s.experts * layout.blocks(s) * expert_weights(s);
  weights.spec.scratch_bytes = 4 * layout.end;
  weights.spec.flops = product * double(s.hidden_rows() + s.hidden);
  weights.spec.bytes =
      4.0 * (double(s.experts * s.dim) * double(s.hidden_rows() + s.hidden) +
             1.5 * double(s.saved()) + double(s.slots()) * double(2 * s.dim));
  weights.spec.emit = [s, list = weights.buffers](Emit& e) {
    Weights{e, s, {e, list}}.kernel();
  };
  return {hidden, moe_combine(s, false, epilogue), weights};
}

}  // namespace moec
