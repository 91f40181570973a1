#include "codegen/cpu/moe_emit.h"

namespace moec {

namespace {

using B = MoeBuffer;

// Scratch, in f32: X^T and Y^T of the task's panels [dim][panel], activations
// of one feature block [panel][features][lanes].
struct Layout {
  int64_t x = 0, y, a, end;
  explicit Layout(const MoeSpec& s)
      : y(x + task_slots(s) * s.dim),
        a(y + task_slots(s) * s.dim),
        end(a + task_slots(s) * kFeatureBlock) {}
};

struct Forward {
  Emit& e;
  const MoeSpec& s;
  const MoeBuffers buffer;
  const int L = e.lanes(), vectors = wide_vectors(e.target());
  const int panel = vectors * L, rows = tile_rows(e.target());
  const bool gated = is_gated(s.activation);
  const int features = gated ? rows / 2 : rows;  // of one tile

  // up(W_up, W_gate, b_up, b_gate, Xt, H, A, next_up, next_gate, stride): a
  // tile of features of A, its pre-activations saved in H
  Fn up(LaneTile t, int n) {
    std::string name =
        "up" + std::to_string(n) + "_" + std::to_string(t.cols * t.width);
    std::vector<Ty> params(9, Ty::Ptr);
    params.push_back(Ty::I64);
    return e.define(name, params, [&, t, n](const Vs& a) mutable {
      t.rows = gated ? 2 * n : n;
      std::vector<Bcast> w = {{a[0], s.dim, 1}};
      if (gated) w.push_back({a[1], s.dim, 1});
      Vs c = zero_tile(e, t);
      if (s.bias)
        for (int i = 0; i < t.rows; ++i)
          for (int j = 0; j < t.cols; ++j)
            c[i * t.cols + j] =
                e.splat(e.load(DType::F32, e.at(a[2 + i / n], i % n)), t.width);
      std::vector<Prefetch> ahead = {{a[7], a[9]}, {a[8], a[9]}};
      c = tile_product(e, t, c, w, a[4], panel, e.i(s.dim), nullptr, ahead);
      // H is read in the backward alone: past the caches
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < t.cols; ++j) {
          const int64_t to = i * panel + j * t.width;
          V u = c[i * t.cols + j], g = nullptr;
          if (gated) {
            g = c[(i + n) * t.cols + j];
            e.vstore_stream(DType::F32, g, e.at(a[5], s.hidden * panel + to));
          }
          e.vstore_stream(DType::F32, u, e.at(a[5], to));
          e.vstore(DType::F32, activate(e, s.activation, g, u), e.at(a[6], to));
        }
    });
  }

  // down(W_down, A, Yt, n, ahead): Yt += W_down A over n features
  Fn down(LaneTile t) {
    std::string name = "down" + std::to_string(t.rows) + "_" +
                       std::to_string(t.cols * t.width);
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
    return e.define(name, params, [&, t](const Vs& a) {
      Vs c = load_tile(e, t, a[2], panel);
      V lines = e.i(spread(rows * panel, kFeatureBlock));
      c = tile_product(e, t, c, {{a[0], s.hidden, 1}}, a[1], panel, a[3],
                       nullptr, {{a[4], lines, 3, true}});
      store_tile(e, t, c, a[2], panel);
    });
  }

  // Yt starts as the bias, or zero.
  void start(V y, V expert) {
    V bias = e.at(buffer(B::BiasDown), e.mul(expert, s.dim));
    e.loop(e.i(0), e.i(s.dim), 1, [&](V c) {
      V v = e.zero(Ty::F32, 0);
      if (s.bias) v = e.splat(e.load(DType::F32, e.at(bias, c)));
      for (int j = 0; j < vectors; ++j)
        e.vstore(DType::F32, v, e.at(y, e.add(e.mul(c, panel), j * L)));
    });
  }

  void task(const ExpertTask& t) {
    const Layout at(s);
    auto part = [&](int64_t offset) { return e.at(e.scratch(), offset); };
    V first_weight = e.mul(t.expert, s.hidden * s.dim);
    V w_up = e.at(buffer(B::Up), first_weight);
    V w_gate = e.at(buffer(gated ? B::Gate : B::Up), first_weight);
    V w_down = e.at(buffer(B::Down), first_weight);
    V biases = e.mul(t.expert, s.hidden);
    V b_up = e.at(buffer(B::BiasUp), biases);
    V b_gate = e.at(buffer(B::BiasGate), biases);
    V saved = e.at(buffer(B::Saved), e.mul(t.panel, s.hidden_rows() * panel));
    auto for_panels = [&](const std::function<void(V, V)>& f) {
      e.loop(e.i(0), t.count, panel, [&](V first) {
        f(first, e.min(e.sub(t.count, first), e.i(panel)));
      });
    };
    Fn gather = gather_function(e, "gather", s.top_k, s.dim);
    for_panels([&](V first, V valid) {
      V to = e.at(part(at.x), e.mul(first, s.dim));
      V perm = e.at(buffer(B::Perm), e.add(t.slot, first));
      for (int j = 0; j < panel; j += L)
        e.if_(e.gt(valid, e.i(j)), [&] {
          e.call(gather,
                 {buffer(B::X), e.at(perm, j), e.add(valid, -j), e.at(to, j)});
        });
      start(e.at(part(at.y), e.mul(first, s.dim)), t.expert);
    });

    e.loop(e.i(0), e.i(s.hidden), kFeatureBlock, [&](V f) {
      V n = e.min(e.sub(e.i(s.hidden), f), e.i(kFeatureBlock));
      V weights = e.mul(f, s.dim);
      auto up_tiles = [&](V i, int tile_features) {
        V at_f = e.add(f, i);
        V w = e.add(weights, e.mul(i, s.dim));
        // one tile fetches the weights after the next, the other one a line
        // of this block of W_down's rows, or where tiles are twice as many, of
        // half the rows
        V ahead = e.add(w, 2 * features * s.dim);
        V number = e.div(i, e.i(features)), pair = e.lshr(number, e.i(1));
        V odd = e.eq(e.and_(number, e.i(1)), e.i(1));
        V line = gated ? e.lshr(pair, e.i(1)) : pair;
        line = e.mul(e.and_(line, e.i(kFeatureBlock / 16 - 1)), 16);
        const int64_t half = s.dim / 2 * s.hidden;
        V down1 = e.at(w_down, e.add(f, line)), down2 = e.at(down1, half);
        if (gated)
          down1 = down2 =
              e.select(e.eq(e.and_(pair, e.i(1)), e.i(1)), down2, down1);
        V next1 = e.at(w_up, ahead);
        V next2 = gated ? e.at(w_gate, ahead)
                        : e.at(w_up, e.add(ahead, s.dim * features / 2));
        V single = e.le(t.count, e.i(panel));
        V stride = e.select(odd, e.i(s.hidden), e.i(16));
        for_panels([&](V first, V valid) {
          // one stream at a time where there are panels enough for both
          V is_first = e.eq(first, e.i(0));
          V from1 = e.select(is_first, next1, next2);
          V from2 = e.select(single, next2, from1);
          V next_up = e.select(odd, down1, from1);
          V next_gate = e.select(odd, down2, from2);
          V x = e.at(part(at.x), e.mul(first, s.dim));
          V h = e.at(e.at(saved, e.mul(first, s.hidden_rows())),
                     e.mul(at_f, panel));
          V a = e.at(e.at(part(at.a), e.mul(first, kFeatureBlock)),
                     e.mul(i, panel));
          for_lane_tiles(e, valid, [&](LaneTile t, int lane) {
            e.call(up(t, tile_features),
                   {e.at(w_up, w), e.at(w_gate, w), e.at(b_up, at_f),
                    e.at(b_gate, at_f), e.at(x, lane), e.at(h, lane),
                    e.at(a, lane), next_up, next_gate, stride});
          });
        });
      };
      V whole = e.mul(e.div(n, e.i(features)), features);
      e.loop(e.i(0), whole, features, [&](V i) { up_tiles(i, features); });
      if (int rest = int(s.hidden % features))
        e.if_(e.lt(whole, n), [&] { up_tiles(whole, rest); });

      auto down_tiles = [&](V c, int tile_rows) {
        V w = e.at(w_down, e.add(e.mul(c, s.hidden), f));
        for_panels([&](V first, V valid) {
          V a = e.at(part(at.a), e.mul(first, kFeatureBlock));
          V y = e.at(e.at(part(at.y), e.mul(first, s.dim)), e.mul(c, panel));
          // the last block fetches the rows that will be stored
          V to = e.add(e.mul(e.add(t.slot, first), s.dim), e.mul(c, panel));
          V last = e.ge(e.add(f, kFeatureBlock), e.i(s.hidden));
          V ahead = e.select(last, e.at(buffer(B::Rows), to), y);
          for_lane_tiles(e, valid, [&](LaneTile t, int lane) {
            t.rows = tile_rows;
            e.call(down(t), {w, e.at(a, lane), e.at(y, lane), n, ahead});
          });
        });
      };
      const int64_t c = s.dim / rows * rows;
      if (c) e.loop(e.i(0), e.i(c), rows, [&](V c) { down_tiles(c, rows); });
      if (c < s.dim) down_tiles(e.i(c), int(s.dim - c));
    });

    for_panels([&](V first, V valid) {
      V y = e.at(part(at.y), e.mul(first, s.dim));
      V to = e.at(buffer(B::Rows), e.mul(e.add(t.slot, first), s.dim));
      Fn scatter = scatter_function(e, s.dim);
      for (int j = 0; j < panel; j += L)
        e.call(scatter, {e.at(y, j), e.at(to, j * s.dim), e.add(valid, -j)});
    });
    e.fence();  // H is visible before the launch ends
  }
};

}  // namespace

std::vector<MoeLaunch> moe_forward(const MoeSpec& s, const Target&,
                                   const MoeEpilogue& epilogue) {
  if (s.bf16 || s.split) return moe_pair_forward(s, epilogue);
  MoeLaunch l;
  l.buffers = {B::X,      B::Offsets,  B::Perm,     B::Up,    B::Gate, B::Down,
               B::BiasUp, B::BiasGate, B::BiasDown, B::Saved, B::Rows};
  l.spec.key = moe_key("moe experts", s);
  l.spec.tasks = expert_tasks(s, task_slots(s));
  l.spec.scratch_bytes = 4 * Layout(s).end;
  l.spec.flops = 2.0 * double(s.slots()) * double(s.dim) *
                 double(s.hidden_rows() + s.hidden);
  l.spec.bytes =
      4.0 * (double(s.experts * s.dim) * double(s.hidden_rows() + s.hidden) +
             double(s.slots()) * double(2 * s.dim) + double(s.saved()));
  l.spec.emit = [s, list = l.buffers](Emit& e) {
    Forward f{e, s, {e, list}};
    for_expert_task(e, s, slot_cut(s, e.target()), f.buffer(B::Offsets),
                    [&](const ExpertTask& t) { f.task(t); });
  };
  return {l, moe_combine(s, true, epilogue)};
}

}  // namespace moec
