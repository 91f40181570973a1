// The first of two phases: per task_slots() slots of an expert dA' = W_down^T
// dO, then dH, the weighted activations, the gradient of the combine weights
// and dX of each slot. The second one is in moe_weights.cpp.
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
          // not read again in this launch: past the caches
          e.vstore_stream(DType::F32, e.mul(f.value, w),
                          e.at(a[4], up + j * t.width));
          store(e.mul(da, f.by_up), a[3], up);
          if (gated) store(e.mul(da, f.by_gate), a[3], gate);
        }
        store(dw, a[6], 0);
      }
    });
  }

  // Floats of a block of H and dH that one of back's tiles fetches.
  int64_t slice() const {
    const int64_t tiles = (s.dim + rows - 1) / rows;
    return (kFeatureBlock * panel + tiles - 1) / tiles;
  }

  // back(W, dH, Xt, n, ahead, next_h, next_dh): Xt += W^T dH over n features
  Fn back(LaneTile t) {
    std::string name = "back" + std::to_string(t.rows) + "_" +
                       std::to_string(t.cols * t.width);
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64,
                              Ty::Ptr, Ty::Ptr, Ty::Ptr};
    return e.define(name, params, [&, t](const Vs& a) {
      Vs c = load_tile(e, t, a[2], panel);
      V lines = e.i(spread(rows * panel, kFeatureBlock));
      V next = e.i(spread(slice(), kFeatureBlock));
      c = tile_product(
          e, t, c, {{a[0], 1, rows}}, a[1], panel, a[3], nullptr,
          {{a[4], lines, 3, true}, {a[5], next}, {a[6], next, 3, true}});
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
          V at_dh = e.add(e.mul(first, s.hidden_rows()),
                          e.mul(e.add(f, half * s.hidden), panel));
          V dh = e.at(dhidden, at_dh), h = e.at(saved, at_dh);
          V x = e.at(part(at.x), e.mul(first, s.dim));
          auto back_tile = [&](V c, int tile_rows) {
            V from = e.at(packed, e.mul(e.div(c, e.i(rows)), at.back_pitch));
            V to = e.at(x, e.mul(c, panel));
            // the last block fetches the rows that will be stored
            V row = e.mul(e.add(t.slot, first), s.dim);
            V last = e.ge(e.add(f, kFeatureBlock), e.i(s.hidden));
            V ahead = e.select(
                last, e.at(buffer(B::Rows), e.add(row, e.mul(c, panel))), to);
            // meanwhile a part of what the next block's dH is made from and
            // replaces, which would come too fast for the memory there
            V skip = e.add(e.mul(e.div(c, e.i(rows)), slice()),
                           e.select(last, e.i(0), e.i(kFeatureBlock * panel)));
            V next_h = e.at(h, skip), next_dh = e.at(dh, skip);
            for_lane_tiles(e, valid, [&](LaneTile t, int lane) {
              t.rows = tile_rows;
              e.call(back(t), {from, e.at(dh, lane), e.at(to, lane), n, ahead,
                               next_h, next_dh});
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
    e.fence();  // A' is visible before the launch ends
  }
};

}  // namespace

std::vector<MoeLaunch> moe_backward(const MoeSpec& s, const Target& target,
                                    const MoeEpilogue& epilogue) {
  if (s.bf16 || s.split) return moe_pair_backward(s, epilogue);
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

  return {hidden, moe_combine(s, false, epilogue), moe_weights(s, target)};
}

}  // namespace moec
