// The second phase of the experts' backward: per expert and block of channels,
// the gradients of W_down or of W_up and W_gate as sums over the expert's slots
// in order. Both are products of a broadcast operand in vectors of rows,
// [row / lanes()][slot][lanes()], and one in tiles, [slot][lanes of the tile]:
// dO and the activations, or dH and X. One of each is gathered here.
#include "codegen/cpu/moe_grad.h"

namespace moec {

namespace {

using B = MoeBuffer;

// Most slots gathered at a time; more of an expert's are cut evenly and
// accumulated. So few that their rows stay near L1.
constexpr int64_t kGatheredSlots = 576;
constexpr int64_t kChannels = 128;  // of a task
constexpr int64_t kKinds = 2;       // of tasks: W_down, or W_up with W_gate

int64_t channel_blocks(const MoeSpec& s) {
  return (s.dim + kChannels - 1) / kChannels;
}

struct Weights {
  Emit& e;
  const MoeSpec& s;
  const MoeBuffers buffer;
  const int L = e.lanes(), R = tile_rows(e.target());

  // sum(G, R, C, n, first, stream, next, stride): C[row][column] of some rows
  // of G and a tile of R, added to what is there unless this is the first sum.
  Fn sum(LaneTile t, int64_t columns, int64_t ldc) {
    std::string name = "sum" + std::to_string(t.rows) + "_" +
                       std::to_string(columns) + "_" + std::to_string(ldc);
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64,
                              Ty::I1,  Ty::I1,  Ty::Ptr, Ty::I64};
    return e.define(name, params, [&, t, columns, ldc](const Vs& a) {
      Vs x = tile_product(e, t, zero_tile(e, t), {{a[0], 1, L}}, a[1],
                          t.lanes(), a[3], nullptr, {{a[6], a[7]}});
      auto each = [&](const std::function<void(V x, V to, V mask)>& f) {
        for (int i = 0; i < t.rows; ++i)
          for (int j = 0; j < t.cols; ++j) {
            const int64_t left = columns - j * L;
            f(x[i * t.cols + j], e.at(a[2], i * ldc + j * L),
              left < L ? e.mask(e.i(left)) : nullptr);
          }
      };
      auto add = [&] {
        each([&](V x, V to, V m) {
          e.vstore(DType::F32, e.add(e.vload(DType::F32, to, m), x), to, m);
        });
      };
      auto store = [&] {
        each([&](V x, V to, V m) { e.vstore(DType::F32, x, to, m); });
      };
      auto stream = [&] {
        each([&](V x, V to, V) { e.vstore_stream(DType::F32, x, to); });
      };
      auto put = [&] {
        // whole lines, not read again soon: past the caches
        if (columns < t.lanes() || ldc % L) return store();
        e.if_(a[5], stream, store);
      };
      e.if_(a[4], put, add);
    });
  }

  // f(run, first column, its number) for each tile.
  void for_tiles(const std::vector<ColumnRun>& runs,
                 const std::function<void(const ColumnRun&, V c)>& f) {
    for (const ColumnRun& r : runs)
      e.loop(e.i(r.first), e.i(r.end), r.width(e), [&](V c) { f(r, c); });
  }
  // f(first, count) for tiles of R rows of n.
  void for_rows(int64_t n, const std::function<void(V row, int count)>& f) {
    const int64_t whole = n / R * R;
    if (whole) e.loop(e.i(0), e.i(whole), R, [&](V row) { f(row, R); });
    if (whole < n) f(e.i(whole), int(n - whole));
  }
  // Place of (row, slot) of an operand with `slots` slots in vectors of rows.
  V in_vectors(V base, V row, V slots, V slot) {
    V within = e.and_(row, e.i(L - 1));
    V vector = e.mul(e.sub(row, within), slots);
    return e.at(base, e.add(e.add(vector, e.mul(slot, L)), within));
  }

  // Bias[row] (+)= sum of w[slot] (1 without w) times an operand in vectors of
  // rows.
  void bias_sums(V g, V pitch, V w, V n, int64_t rows, V to, V first) {
    auto vector = [&](V row, V mask) {
      V from = e.at(g, e.mul(row, pitch));
      V sum = e.loop(e.i(0), n, 1, {e.zero(Ty::F32, 0)}, [&](V slot, Vs x) {
        V y = e.vload(DType::F32, e.at(from, e.mul(slot, L)));
        if (!w) return Vs{e.add(x[0], y)};
        return Vs{e.fma(e.splat(e.load(DType::F32, e.at(w, slot))), y, x[0])};
      })[0];
      V old = e.vload(DType::F32, e.at(to, row), mask);
      if (first) old = e.select(first, e.zero(Ty::F32, 0), old);
      e.vstore(DType::F32, first ? e.add(old, sum) : sum, e.at(to, row), mask);
    };
    const int64_t whole = rows / L * L;
    e.loop(e.i(0), e.i(whole), L, [&](V row) { vector(row, nullptr); });
    if (whole < rows) vector(e.i(whole), e.mask(e.i(rows - whole)));
  }

  // A chunk of an expert's slots: `n` from `from` on.
  struct Chunk {
    V from, n, first, single;
  };
  void for_chunks(V count, const std::function<void(const Chunk&)>& f) {
    // one chunk for an expert without slots, whose gradient is zero
    V chunks = e.max(e.ceil_div(count, kGatheredSlots), e.i(1));
    V size = e.div(e.add(count, e.add(chunks, -1)), chunks);
    e.loop(e.i(0), chunks, 1, [&](V number) {
      V from = e.min(e.mul(number, size), count);
      f({from, e.min(e.sub(count, from), size), e.eq(number, e.i(0)),
         e.eq(chunks, e.i(1))});
    });
  }

  // W_down of some channels: dO in vectors of rows, the activations in tiles.
  void down(const ExpertTask& t, V column, int64_t channels) {
    const HiddenGrad grad(e, s, buffer, t);
    std::vector<ColumnRun> vectors = {{0, channels / L * L, 1}};
    if (channels % L) vectors.push_back({channels / L * L, channels, 1});
    V weight = e.at(buffer(B::DDown), e.add(e.mul(t.expert, s.hidden * s.dim),
                                            e.mul(column, s.hidden)));
    for_chunks(t.total, [&](const Chunk& c) {
      V slot = e.add(t.begin, c.from);
      e.call(collect_function(e, "rows", s, vectors, kGatheredSlots),
             {e.at(buffer(B::Dy), column), e.at(buffer(B::Perm), slot),
              e.scratch(), c.n});
      if (s.bias)
        bias_sums(
            e.scratch(), e.i(kGatheredSlots),
            e.at(buffer(B::SlotWeights), slot), c.n, channels,
            e.at(buffer(B::DBiasDown), e.add(e.mul(t.expert, s.dim), column)),
            c.first);
      V half = e.mul(e.lshr(c.n, e.i(1)), 16);  // that a call fetches
      for_tiles(column_runs(s.hidden, e.target()), [&](const ColumnRun& r,
                                                       V f) {
        V a = e.at(grad.activated(f), e.mul(c.from, r.width(e)));
        V next = e.at(a, e.mul(t.total, r.width(e)));
        for_rows(channels, [&](V row, int count) {
          V part = e.div(row, e.i(R));
          V some = e.lt(part, e.i(2 * r.vectors));
          V ahead = e.at(next, e.mul(e.select(some, part, e.i(0)), half));
          e.call(sum({count, r.vectors, L}, r.columns(e), s.hidden),
                 {in_vectors(e.scratch(), row, e.i(kGatheredSlots), e.i(0)), a,
                  e.at(weight, e.add(e.mul(row, s.hidden), f)), c.n, c.first,
                  c.single, ahead, e.select(some, e.i(16), e.i(0))});
        });
      });
    });
  }

  // W_up and W_gate of some channels: dH in vectors of rows, X in tiles.
  void up(const ExpertTask& t, V column, int64_t channels) {
    const HiddenGrad grad(e, s, buffer, t);
    const std::vector<ColumnRun> runs = column_runs(channels, e.target());
    const int weights = expert_weights(s) - 1;
    if (s.bias)
      e.if_(e.eq(column, e.i(0)), [&] {
        for (int i = 0; i < weights; ++i)
          bias_sums(grad.hidden(i, e.i(0), e.i(0)), t.total, nullptr, t.total,
                    s.hidden,
                    e.at(buffer(i ? B::DBiasGate : B::DBiasUp),
                         e.mul(t.expert, s.hidden)),
                    nullptr);
      });
    for_chunks(t.total, [&](const Chunk& c) {
      e.call(collect_function(e, "tiles", s, runs, kGatheredSlots),
             {e.at(buffer(B::X), column),
              e.at(buffer(B::Perm), e.add(t.begin, c.from)), e.scratch(), c.n});
      V half = e.mul(e.lshr(c.n, e.i(1)), 16);  // that a call fetches
      for_rows(s.hidden, [&](V f, int count) {
        for (int i = 0; i < weights; ++i) {
          V weight = e.at(buffer(i ? B::DGate : B::DUp),
                          e.add(e.mul(t.expert, s.hidden * s.dim), column));
          V base = grad.hidden(i, e.i(0), e.i(0));
          V dh = in_vectors(base, f, t.total, c.from);
          // half of the next vector of features
          V part = e.lshr(e.and_(f, e.i(L - 1)), e.i(3));
          V next = e.at(in_vectors(base, e.add(f, L), t.total, c.from),
                        e.mul(part, half));
          for_tiles(runs, [&](const ColumnRun& r, V k) {
            V some = e.eq(k, e.i(0));
            e.call(sum({count, r.vectors, L}, r.columns(e), s.dim),
                   {dh, e.at(e.scratch(), e.mul(k, kGatheredSlots)),
                    e.at(weight, e.add(e.mul(f, s.dim), k)), c.n, c.first,
                    c.single, e.select(some, next, dh),
                    e.select(some, e.i(16), e.i(0))});
          });
        }
      });
    });
  }

  void kernel() {
    const int64_t blocks = channel_blocks(s);
    const int64_t rest = s.dim - (blocks - 1) * kChannels;
    V kind = e.rem(e.task(), e.i(kKinds));
    V number = e.div(e.task(), e.i(kKinds));
    V block = e.rem(number, e.i(blocks));
    V column = e.mul(block, kChannels);
    ExpertTask t = whole_expert(e, slot_cut(s, e.target()), buffer(B::Offsets),
                                e.div(number, e.i(blocks)));
    auto task = [&](int64_t channels) {
      // what takes longest comes first
      e.if_(
          e.eq(kind, e.i(1)), [&] { down(t, column, channels); },
          [&] { up(t, column, channels); });
    };
    if (rest == kChannels || blocks == 1)
      task(rest);
    else
      e.if_(
          e.lt(block, e.i(blocks - 1)), [&] { task(kChannels); },
          [&] { task(rest); });
    e.fence();  // streamed rows are visible before the launch ends
  }
};

}  // namespace

MoeLaunch moe_weights(const MoeSpec& s, const Target&) {
  const double product = 2.0 * double(s.slots()) * double(s.dim);
  MoeLaunch weights;
  weights.buffers = {B::X,        B::Dy,        B::Offsets,     B::Perm,
                     B::DHidden,  B::Activated, B::SlotWeights, B::DUp,
                     B::DGate,    B::DDown,     B::DBiasUp,     B::DBiasGate,
                     B::DBiasDown};
  weights.spec.key = moe_key("moe weights_grad", s);
  weights.spec.tasks = s.experts * channel_blocks(s) * kKinds;
  // whole tiles of the widest channels
  weights.spec.scratch_bytes = 4 * kGatheredSlots * (kChannels + 16);
  weights.spec.flops = product * double(s.hidden_rows() + s.hidden);
  weights.spec.bytes =
      4.0 * (double(s.experts * s.dim) * double(s.hidden_rows() + s.hidden) +
             1.5 * double(s.saved()) + double(s.slots()) * double(2 * s.dim));
  weights.spec.emit = [s, list = weights.buffers](Emit& e) {
    Weights{e, s, {e, list}}.kernel();
  };
  return weights;
}

}  // namespace moec
