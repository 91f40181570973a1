// The second phase of the experts' backward: per expert and block of channels,
// the gradients of W_down or of W_up and W_gate as sums over the expert's slots
// in order.
#include "codegen/cpu/moe_emit.h"

namespace moec {

namespace {

using B = MoeBuffer;

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
    // wide blocks read dH less often, if enough tasks remain
    block = 4 * width;
    if (s.experts * kKinds * blocks(s) < 16) block = 2 * width;
    sums = r + kGatheredSlots * block;
    end = sums + s.hidden * block;
  }
  int64_t blocks(const MoeSpec& s) const { return (s.dim + block - 1) / block; }
  // of tasks: W_down, or W_up with W_gate, which share the gathered rows
  static constexpr int64_t kKinds = 2;
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

  // collect(src, perm, R, n, width): R[tile][slot][wide] = `width` columns of
  // the slots' rows for all tiles of the block, padded by zeros
  Fn collect(int64_t block) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I64};
    return e.define("collect", params, [&, block](const Vs& a) {
      auto row_of = [&](V slot) {
        V choice = e.zext(e.load(DType::I32, e.at(a[1], slot)), Ty::I64);
        return e.at(a[0], e.mul(e.udiv(choice, e.i(s.top_k)), s.dim));
      };
      V last = e.add(a[3], -1);
      auto rows = [&](bool masked) {
        e.loop(e.i(0), a[3], 1, [&](V slot) {
          V later = row_of(e.min(e.add(slot, 8), last));
          for (int64_t c = 0; c < block; c += 16) e.prefetch(e.at(later, c));
          V from = row_of(slot), to = e.at(a[2], e.mul(slot, wide));
          for (int64_t c = 0; c < block; c += L) {
            V mask = masked ? e.mask(e.add(a[4], -c)) : nullptr;
            e.vstore(DType::F32, e.vload(DType::F32, e.at(from, c), mask),
                     e.at(to, c / wide * (kGatheredSlots * wide) + c % wide));
          }
        });
      };
      e.if_(e.lt(a[4], e.i(block)), [&] { rows(true); }, [&] { rows(false); });
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
      auto to = [&](int k) { return e.at(a[1], k * s.hidden); };
      auto some = [&] {
        V mask = e.mask(a[2]);
        for (int k = 0; k < L; ++k)
          e.if_(e.lt(e.i(k), a[3]),
                [&] { e.vstore(DType::F32, rows[k], to(k), mask); });
      };
      // whole lines, not read again soon: past the caches
      auto all = [&] {
        for (int k = 0; k < L; ++k) e.vstore_stream(DType::F32, rows[k], to(k));
      };
      if (L < 16 || s.hidden % L) return some();
      e.if_(e.lt(a[3], e.i(L)), some, all);
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

  // One of the gradients of a task.
  struct Product {
    V g, weight;  // of the expert: its first panel, and where the sum goes
  };

  void task(bool down, V expert, V column) {
    const ExpertWeight p = expert_weight(s, down ? 0 : 1);
    ExpertTask t =
        whole_expert(e, slot_cut(s, e.target()), buffer(B::Offsets), expert);
    const int64_t panel_stride = p.feature_rows * panel;
    std::vector<Product> products;
    for (int i = down ? 0 : 1; i < (down ? 1 : expert_weights(s)); ++i) {
      const ExpertWeight q = expert_weight(s, i);
      V g = e.at(buffer(q.product),
                 e.add(e.mul(t.panel, panel_stride), e.i(q.first_row * panel)));
      products.push_back(
          {g, e.at(buffer(q.weight), e.mul(expert, s.hidden * s.dim))});
      if (s.bias && !down)
        e.if_(e.eq(column, e.i(0)), [&] {
          row_sums(g, panel_stride, t.count,
                   e.at(buffer(q.bias), e.mul(expert, s.hidden)));
        });
    }
    const WeightLayout at(s, wide);
    auto part_of = [&](int64_t offset, V half, int64_t size) {
      return e.at(e.at(e.scratch(), offset), e.mul(half, size));
    };
    V left = e.min(e.sub(e.i(s.dim), column), e.i(at.block));
    auto for_tiles = [&](const std::function<void(V tile, V c, V n)>& f) {
      e.loop(e.i(0), e.ceil_div(left, wide), 1, [&](V tile) {
        V c = e.mul(tile, wide);
        f(tile, e.add(column, c), e.min(e.sub(left, c), e.i(wide)));
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
      V skip = e.mul(e.div(from, e.i(panel)), panel_stride);
      e.call(collect(at.block),
             {e.at(buffer(p.source), column), e.at(buffer(B::Perm), slot),
              e.at(e.scratch(), at.r), n, left});
      if (s.bias && down)
        for_tiles([&](V tile, V c, V width) {
          column_sums(part_of(at.r, tile, kGatheredSlots * wide),
                      e.at(buffer(B::SlotWeights), slot), n, width,
                      e.at(buffer(p.bias), e.add(e.mul(expert, s.dim), c)),
                      first);
        });
      auto features = [&](V f, int count) {
        for (const Product& q : products)
          for_tiles([&](V tile, V c, V width) {
            const int64_t ldc = down ? wide : s.dim;
            V to = down ? part_of(at.sums, tile, s.hidden * wide)
                        : e.at(q.weight, c);
            V r = part_of(at.r, tile, kGatheredSlots * wide);
            e.call(sum(count, panel_stride, ldc),
                   {e.at(e.at(q.g, skip), e.mul(f, panel)), r,
                    e.at(to, e.mul(f, ldc)), n, down ? e.i(wide) : width, first,
                    streams});
          });
      };
      const int64_t whole = s.hidden / rows * rows;
      e.loop(e.i(0), e.i(whole), rows, [&](V f) { features(f, rows); });
      if (whole < s.hidden) features(e.i(whole), int(s.hidden - whole));
    });
    if (down)
      for_tiles([&](V tile, V c, V width) {
        V sums = part_of(at.sums, tile, s.hidden * wide);
        e.loop(e.i(0), e.i(s.hidden), L, [&](V f) {
          for (int j = 0; j < vectors; ++j) {
            V to = e.add(e.mul(e.add(c, j * L), s.hidden), f);
            e.call(flip(), {e.at(sums, e.add(e.mul(f, wide), j * L)),
                            e.at(products[0].weight, to),
                            e.sub(e.i(s.hidden), f), e.add(width, -j * L)});
          }
        });
      });
    e.fence();  // streamed rows are visible before the launch ends
  }

  void kernel() {
    const WeightLayout at(s, wide);
    const int64_t block = at.block, blocks = at.blocks(s);
    // what takes longest comes first
    V kind = e.rem(e.task(), e.i(at.kKinds));
    V rest = e.div(e.task(), e.i(at.kKinds));
    V column = e.mul(e.rem(rest, e.i(blocks)), block);
    V expert = e.div(rest, e.i(blocks));
    e.if_(
        e.eq(kind, e.i(1)), [&] { task(true, expert, column); },
        [&] { task(false, expert, column); });
  }
};

}  // namespace

MoeLaunch moe_weights(const MoeSpec& s, const Target& target) {
  const double product = 2.0 * double(s.slots()) * double(s.dim);
  MoeLaunch weights;
  weights.buffers = {B::X,        B::Dy,        B::Offsets,     B::Perm,
                     B::DHidden,  B::Activated, B::SlotWeights, B::DUp,
                     B::DGate,    B::DDown,     B::DBiasUp,     B::DBiasGate,
                     B::DBiasDown};
  const WeightLayout layout(s, channel_tile(s.dim, target).lanes());
  weights.spec.key = moe_key("moe weights_grad", s);
  weights.spec.tasks = s.experts * layout.blocks(s) * layout.kKinds;
  weights.spec.scratch_bytes = 4 * layout.end;
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
