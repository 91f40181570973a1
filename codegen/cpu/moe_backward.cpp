// The first of two phases: per grad_slots() slots of an expert dA' = dO W_down,
// then dH, the weighted activations, the gradient of the combine weights and
// dX of each slot. Slots are the rows here, features or channels stand in the
// lanes: both products take the weights as they lie in memory, and no lane is
// left to slots that don't exist. The second phase is in moe_weights.cpp.
#include <algorithm>
#include <numeric>

#include "codegen/cpu/moe_backward_tiles.h"

namespace moec {

namespace {

using B = MoeBuffer;

// Features between two updates of dX, whole tiles on every target.
constexpr int64_t kGradBlock = 48;

// Whether tiles of `rows` rows of a weight are packed: where the rows fill most
// of the sets of L2 that they map to, or each load would cross a line.
bool packs(int64_t rows, int64_t stride) {
  constexpr int64_t kWay = 128 << 10, kRows = 4;
  return stride % 16 || rows * std::gcd(4 * stride, kWay) > kRows * kWay;
}
bool packs_down(const MoeSpec& s) { return packs(s.dim, s.hidden); }
bool packs_back(const MoeSpec& s) { return packs(2 * kGradBlock, s.dim); }

// Most slots of a task: so few that their dH, H and weights stay in L2, but for
// what packing costs.
int64_t grad_slots(const MoeSpec& s) {
  return packs_back(s) ? task_slots(s) : std::min<int64_t>(task_slots(s), 144);
}

// Scratch, in f32: rows of dO and of dX, padded, combine weights, their
// gradient as [slot][lanes], dA' of lanes() slots and a tile, a tile of
// weights.
struct Layout {
  int64_t g = 0, x, w, dw, da, packed, end;
  explicit Layout(const MoeSpec& s) {
    const int64_t slots = grad_slots(s);
    const int64_t padded = (s.dim + 15) / 16 * 16;
    x = g + slots * padded;
    w = x + slots * padded;
    dw = w + slots;
    da = dw + slots * 16;
    packed = da + 16 * 48;
    const int64_t down = packs_down(s) ? s.dim : 0;
    end = packed + 48 * std::max(down, packs_back(s) ? 4 * kGradBlock : 0);
  }
};

struct Hidden : HiddenTiles {
  const MoeBuffers buffer;
  // Lines of a row of features that a call fetches.
  static constexpr int64_t kLines = kGradBlock / 2;

  V part(int64_t offset) { return e.at(e.scratch(), offset); }

  // The parts of a task that its functions share.
  struct Task {
    const ExpertTask& t;
    const HiddenGrad grad;
    V skip, groups;  // before its slots, and how many there are
    V w_up, w_gate, w_down, saved;
  };

  // f(first, how many exist) for each lanes() slots.
  void for_groups(const Task& k, const std::function<void(V, V)>& f) {
    e.loop(e.i(0), k.t.count, L,
           [&](V first) { f(first, e.min(e.sub(k.t.count, first), e.i(L))); });
  }
  // f(run, first column, number of tiles before) for each tile of n columns.
  void for_tiles(int64_t n,
                 const std::function<void(const ColumnRun&, V, V)>& f) {
    int64_t before = 0;
    for (const ColumnRun& r : column_runs(n, e.target())) {
      const int64_t width = r.width(e);
      e.loop(e.i(r.first), e.i(r.end), width, [&](V c) {
        V number = e.div(e.add(c, -r.first), e.i(width));
        f(r, c, e.add(number, before));
      });
      before += (r.end - r.first + width - 1) / width;
    }
  }
  // Number of the first of the two calls for a group and a tile.
  V call_number(const Task& k, V tile, V first) {
    V group = e.div(first, e.i(L));
    return e.mul(e.add(e.mul(tile, k.groups), group), 2);
  }
  // H of a task's slot and the feature 0.
  V saved_slot(const Task& k, V slot) {
    V number = e.div(slot, e.i(panel));
    V row = e.mul(number, s.hidden_rows() * panel);
    return e.at(k.saved, e.add(row, e.sub(slot, e.mul(number, panel))));
  }

  // The combine weights of some slots; their gradient starts with what the
  // bias of W_down contributes.
  void start(const Task& k, V first, V valid) {
    const Layout at(s);
    load_slot_weights(e, buffer, k.t, first, valid, L, e.at(part(at.w), first));
    V bias = e.at(buffer(B::BiasDown), e.mul(k.t.expert, s.dim));
    V dw = e.at(part(at.dw), e.mul(first, L));
    e.loop(e.i(0), valid, 1, [&](V slot) {
      V row = e.at(part(at.g), e.mul(e.add(first, slot), dim));
      auto step = [&](V c, V mask, V sum) {
        return e.fma(e.vload(DType::F32, e.at(bias, c), mask),
                     e.vload(DType::F32, e.at(row, c)), sum);
      };
      Vs sum = {e.zero(Ty::F32, 0)};
      if (s.bias) {
        const int64_t whole = s.dim / L * L;
        sum = e.loop(e.i(0), e.i(whole), L, sum,
                     [&](V c, Vs x) { return Vs{step(c, nullptr, x[0])}; });
        if (whole < s.dim)
          sum[0] = step(e.i(whole), e.mask(e.i(s.dim - whole)), sum[0]);
      }
      e.vstore(DType::F32, sum[0], e.at(dw, e.mul(slot, L)));
    });
  }

  // dH and A' of n features from f on.
  void hidden(const Task& k, V f, int64_t n) {
    const Layout at(s);
    // meanwhile the rows of W_up and W_gate, spread over all calls
    int64_t tiles = 0;
    for (const ColumnRun& r : column_runs(n, e.target()))
      tiles += (r.end - r.first + r.width(e) - 1) / r.width(e);
    V stride = e.div(e.i(2 * n), e.mul(k.groups, 2 * tiles));
    stride = e.min(e.i(16), e.add(stride, 1));
    for_tiles(n, [&](const ColumnRun& r, V c, V tile) {
      V feature = e.add(f, c), w = e.at(k.w_down, feature);
      if (packs_down(s)) {
        e.call(pack(r, s.dim, s.hidden), {w, part(at.packed)});
        w = part(at.packed);
      }
      for_groups(k, [&](V first, V valid) {
        V call = call_number(k, tile, first);
        V g = e.at(part(at.g), e.mul(first, dim));
        for_row_tiles(valid, r.vectors, [&](LaneTile t, int row) {
          V skip = e.mul(e.add(call, row ? 1 : 0), e.mul(stride, s.dim / 2));
          V some = e.lt(skip, e.i(n * s.dim));
          V next = e.add(e.mul(f, s.dim), e.select(some, skip, e.i(0)));
          e.call(down(t, r, packs_down(s) ? r.width(e) : s.hidden),
                 {w, e.at(g, row * dim), e.at(part(at.da), row * wide),
                  e.at(k.w_up, next), e.at(k.w_gate, next),
                  e.select(some, stride, e.i(0))});
        });
        V slot = e.add(k.skip, first), after = e.add(first, L);
        V more = e.lt(after, k.t.count);
        V h = saved_slot(k, first);
        V next_h = saved_slot(k, e.select(more, after, e.i(0)));
        next_h = e.at(next_h, e.select(more, e.i(0), e.i(r.width(e) * panel)));
        V a = e.at(k.grad.activated(feature), e.mul(slot, r.width(e)));
        for (int j = 0; j < r.vectors; ++j) {
          const auto exist = std::min<int64_t>(L, r.columns(e) - j * L);
          V vector = e.add(feature, j * L), row = e.mul(vector, panel);
          e.call(activations(r, exist),
                 {e.at(h, row), e.at(part(at.da), j * L),
                  e.at(part(at.w), first), e.at(part(at.dw), e.mul(first, L)),
                  k.grad.hidden(0, vector, slot),
                  k.grad.hidden(gated ? 1 : 0, vector, slot), e.at(a, j * L),
                  valid, e.at(next_h, row)});
        }
      });
    });
  }

  // Two places that a call of back() walks with a stride.
  struct Ahead {
    V first, second, stride;
  };
  // What the call fetches of the next block, from feature f on: first a line
  // of W_down for some rows, then a piece of a panel of H, then dH of a vector
  // of features and some slots; otherwise nothing, at `idle`.
  Ahead ahead(const Task& k, V f, V call, V idle) {
    constexpr int64_t kRows = 2 * kLines, kPiece = 16 * kLines;
    auto cut = [&](V number, V parts) {
      V which = e.div(number, parts);
      return std::pair(which, e.sub(number, e.mul(which, parts)));
    };
    const int64_t parts = (s.dim + kRows - 1) / kRows;
    auto [line, rows] = cut(call, e.i(parts));
    V skip = e.add(e.mul(line, 16), e.mul(rows, kRows * s.hidden));
    V w = e.at(k.w_down, e.add(f, skip));

    const int64_t pieces = kGradBlock * panel / kPiece;
    V call_h = e.add(call, -(kGradBlock / 16) * parts);
    auto [number, piece] = cut(call_h, e.i(pieces));
    skip = e.add(e.mul(number, s.hidden_rows() * panel), e.mul(f, panel));
    V h = e.at(k.saved, e.add(skip, e.mul(piece, kPiece)));

    V count = e.mul(e.ceil_div(k.t.count, panel), pieces);
    V call_dh = e.sub(call_h, count);
    V chunks = e.ceil_div(e.mul(k.t.count, L), kPiece);
    auto [vector, chunk] = cut(call_dh, chunks);
    V feature = e.add(f, e.mul(vector, L));
    auto dh = [&](int gate) {
      return e.at(k.grad.hidden(gate, feature, k.skip), e.mul(chunk, kPiece));
    };
    V is_w = e.lt(call_h, e.i(0)), is_h = e.lt(call_dh, e.i(0));
    V some = e.and_(e.lt(f, e.i(s.hidden)),
                    e.lt(call_dh, e.mul(chunks, kGradBlock / L)));
    auto choose = [&](V w, V h, V dh) {
      return e.select(some, e.select(is_w, w, e.select(is_h, h, dh)), idle);
    };
    V h_gate = e.at(h, gated ? s.hidden * panel : 0);
    V stride = e.select(is_w, e.i(s.hidden), e.i(16));
    return {choose(w, h, dh(0)),
            choose(e.at(w, kLines * s.hidden), h_gate, dh(gated ? 1 : 0)),
            e.select(some, stride, e.i(0))};
  }

  // dX += dH W_up + dH W_gate over n features from f on.
  void back_block(const Task& k, V f, int64_t n) {
    const Layout at(s);
    V is_first = e.eq(f, e.i(0)), next = e.add(f, n);
    V is_last = e.ge(next, e.i(s.hidden));
    for_tiles(s.dim, [&](const ColumnRun& r, V c, V tile) {
      V w = e.add(e.mul(f, s.dim), c);
      V w_up = e.at(k.w_up, w), w_gate = e.at(k.w_gate, w);
      if (packs_back(s)) {
        for (int i = 0; i < (gated ? 2 : 1); ++i) {
          V& from = i ? w_gate : w_up;
          V to = part(at.packed + i * n * r.width(e));
          e.call(pack(r, n, s.dim), {from, to});
          from = to;
        }
      }
      for_groups(k, [&](V first, V valid) {
        V call = call_number(k, tile, first), slot = e.add(k.skip, first);
        V x = e.at(part(at.x), e.add(e.mul(first, dim), c));
        V row = e.mul(e.add(k.t.slot, first), s.dim);
        V to = e.select(is_last, e.at(buffer(B::Rows), e.add(row, c)), x);
        V ldc = e.select(is_last, e.i(s.dim), e.i(dim));
        V up = k.grad.hidden(0, f, slot);
        V gate = k.grad.hidden(gated ? 1 : 0, f, slot);
        for_row_tiles(valid, r.vectors, [&](LaneTile t, int row) {
          Ahead fetch = ahead(k, next, e.add(call, row ? 1 : 0), to);
          e.call(back(t, r, packs_back(s) ? r.width(e) : s.dim, n % L),
                 {e.at(up, row * L), w_up, e.at(gate, row * L), w_gate,
                  e.at(x, row * dim), e.at(to, e.mul(ldc, row)), ldc,
                  e.mul(k.t.total, L), e.i(n / L * L), e.add(valid, -row),
                  is_first, fetch.first, fetch.second, fetch.stride});
        });
      });
    });
  }

  void task(const ExpertTask& t) {
    const Layout at(s);
    V matrix = e.mul(t.expert, s.hidden * s.dim);
    const Task k = {
        t,
        HiddenGrad(e, s, buffer, t),
        e.sub(t.slot, t.begin),
        e.ceil_div(t.count, L),
        e.at(buffer(B::Up), matrix),
        e.at(buffer(gated ? B::Gate : B::Up), matrix),
        e.at(buffer(B::Down), matrix),
        e.at(buffer(B::Saved), e.mul(t.panel, s.hidden_rows() * panel))};
    Fn collect =
        collect_function(e, "collect", s, {{0, s.dim, int(dim / L)}}, 0);
    e.call(collect,
           {buffer(B::Dy), e.at(buffer(B::Perm), t.slot), part(at.g), t.count});
    // rows that a tile reads in vain
    V read = e.mul(e.ceil_div(t.count, 4), 4);
    zero_fill(e, e.at(part(at.g), e.mul(t.count, dim)),
              e.mul(e.sub(read, t.count), dim));
    for_groups(k, [&](V first, V valid) { start(k, first, valid); });

    auto block = [&](V f, int64_t n) {
      hidden(k, f, n);
      back_block(k, f, n);
    };
    // what the widest tiles leave has the same tiles as in a whole row
    const ColumnRun widest = column_runs(s.hidden, e.target())[0];
    const bool is_wide = widest.vectors == wide_vectors(e.target());
    const int64_t whole = is_wide ? widest.end / kGradBlock * kGradBlock : 0;
    if (whole)
      e.loop(e.i(0), e.i(whole), kGradBlock,
             [&](V f) { block(f, kGradBlock); });
    if (whole < s.hidden) block(e.i(whole), s.hidden - whole);

    e.loop(e.i(0), t.count, 1, [&](V slot) {
      V choice = e.load(DType::I32, e.at(buffer(B::Perm), e.add(t.slot, slot)));
      V dw = e.vload(DType::F32, e.at(part(at.dw), e.mul(slot, L)));
      e.store(DType::F32, e.hsum(dw),
              e.at(buffer(B::DWeights), e.sext(choice, Ty::I64)));
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
  hidden.spec.tasks = expert_tasks(s, grad_slots(s));
  hidden.spec.scratch_bytes = 4 * Layout(s).end;
  hidden.spec.flops = product * double(s.hidden_rows() + s.hidden);
  hidden.spec.bytes =
      4.0 * (double(s.experts * s.dim) * double(s.hidden_rows() + s.hidden) +
             double(s.slots()) * double(2 * s.dim) + 2.5 * double(s.saved()));
  hidden.spec.emit = [s, list = hidden.buffers](Emit& e) {
    Hidden h{{e, s}, {e, list}};
    const SlotCut cut = {grad_slots(s), wide_panel(e.target())};
    for_expert_task(e, s, cut, h.buffer(B::Offsets),
                    [&](const ExpertTask& t) { h.task(t); });
  };

  return {hidden, moe_combine(s, false, epilogue), moe_weights(s, target)};
}

}  // namespace moec
