#include "codegen/cpu/moe_few.h"

#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/dot_tile.h"
#include "codegen/cpu/moe_emit.h"

namespace moec {
namespace {

using B = MoeBuffer;

V load_i64(Emit& e, V p) { return e.sext(e.load(DType::I32, p), Ty::I64); }

// The expert that a slot in use belongs to: how many end at or before it.
V expert_of(Emit& e, const MoeSpec& s, V offsets, V slot) {
  const int L = e.lanes();
  V at = e.splat(e.trunc(slot, Ty::I32)), ends = e.at(offsets, 1);
  auto count = [&](V c, V mask, V sum) {
    V done = e.le(e.vload(DType::I32, e.at(ends, c), mask), at);
    if (mask) done = e.and_(done, mask);
    return e.sub(sum, e.sext(done, Ty::I32));
  };
  const int64_t whole = s.experts / L * L;
  V sum = e.zero(Ty::I32, 0);
  if (whole)
    sum = e.loop(e.i(0), e.i(whole), L, {sum},
                 [&](V c, Vs x) { return Vs{count(c, nullptr, x[0])}; })[0];
  if (whole < s.experts)
    sum = count(e.i(whole), e.mask(e.i(s.experts - whole)), sum);
  return e.sext(e.hsum(sum), Ty::I64);
}

struct Few {
  Emit& e;
  const MoeSpec& s;
  const DType dtype;
  const MoeBuffers buffer;
  const bool gated = is_gated(s.activation);

  V weight_row(B b, V row, int64_t length) const {
    return element(e, buffer(b), e.mul(row, length), dtype);
  }

  // `count` features from f on, for the slots [slot, end) of one expert.
  void up_tile(V expert, V slot, V end, V f, int count, V ahead) const {
    V row = e.add(e.mul(expert, s.hidden), f);
    DotTile t;
    t.weight_dtype = dtype;
    t.length = s.dim;
    for (B b : gated ? std::vector<B>{B::Up, B::Gate} : std::vector<B>{B::Up}) {
      V first = weight_row(b, row, s.dim);
      for (int i = 0; i < count; ++i) {
        t.weights.push_back(element(e, first, e.i(i * s.dim), dtype));
        if (ahead)
          t.ahead.push_back(element(e, t.weights.back(), ahead, dtype));
      }
    }
    auto bias = [&](B b) {
      V p = e.at(buffer(b), row);
      return count == 1 ? e.load(DType::F32, p)
                        : e.vload(DType::F32, p, nullptr, count);
    };
    V b_up = s.bias ? bias(B::BiasUp) : nullptr;
    V b_gate = s.bias && gated ? bias(B::BiasGate) : nullptr;
    e.loop(slot, end, 1, [&](V at) {
      V choice = load_i64(e, e.at(buffer(B::Perm), at));
      V token = e.udiv(choice, e.i(s.top_k));
      DotTile own = t;
      own.xs = {e.at(buffer(B::X), e.mul(token, s.dim))};
      Vs sums = dot_tile(e, own, zero_sums(e, own));
      V up = sums_of(e, Vs(sums.begin(), sums.begin() + count));
      V gate =
          gated ? sums_of(e, Vs(sums.begin() + count, sums.end())) : nullptr;
      if (b_up) up = e.add(up, b_up);
      if (b_gate) gate = e.add(gate, b_gate);
      V weight = e.load(DType::F32, e.at(buffer(B::Weights), choice));
      V a = e.mul(activate(e, s.activation, gate, up), weight);
      V to = e.at(buffer(B::Activated), e.add(e.mul(at, s.hidden), f));
      count == 1 ? e.store(DType::F32, a, to) : e.vstore(DType::F32, a, to);
    });
  }

  // A task is a slot and a block of features; the first slot of an expert
  // does the expert's others as well, whose weights are near then.
  void up(int64_t per_task) const {
    const int64_t blocks = (s.hidden + per_task - 1) / per_task;
    V slot = e.udiv(e.task(), e.i(blocks)), offsets = buffer(B::Offsets);
    e.if_(e.lt(slot, load_i64(e, e.at(offsets, s.experts))), [&] {
      V expert = expert_of(e, s, offsets, slot);
      V first = load_i64(e, e.at(offsets, expert));
      e.if_(e.eq(slot, first), [&] {
        V end = load_i64(e, e.at(offsets, e.add(expert, 1)));
        V f0 = e.mul(e.urem(e.task(), e.i(blocks)), per_task);
        V f1 = e.min(e.add(f0, per_task), e.i(s.hidden));
        const int w = dot_tile_weights(e, 1) / (gated ? 2 : 1);
        V whole = e.add(f0, e.and_(e.sub(f1, f0), e.i(-int64_t(w))));
        if (s.hidden >= w)
          e.loop(f0, whole, w, [&](V f) {
            V more = e.le(e.add(f, 2 * w), whole);
            up_tile(expert, slot, end, f, w,
                    e.select(more, e.i(w * s.dim), e.i(0)));
          });
        if (s.hidden % w)
          e.loop(whole, f1, 1,
                 [&](V f) { up_tile(expert, slot, end, f, 1, nullptr); });
      });
    });
  }

  // Where choice j of a token finds its weights, rows from c on, and its
  // activations; a dropped one has slot -1.
  struct Choice {
    V slot, row, weights;
  };
  Choice choice(V token, V j, V c) const {
    V at = e.add(e.mul(token, s.top_k), j);
    V slot = load_i64(e, e.at(buffer(B::Inverse), at));
    V expert = expert_of(e, s, buffer(B::Offsets), e.max(slot, e.i(0)));
    expert = e.min(expert, e.i(s.experts - 1));
    V row = e.add(e.mul(expert, s.dim), c);
    return {slot, row, weight_row(B::Down, row, s.hidden)};
  }

  // `count` channels from c on of one token; those from `next_c` on follow.
  void down_tile(V token, V c, V next_c, int count) const {
    DotTile t;
    t.weight_dtype = dtype;
    t.length = s.hidden;
    t.weights.resize(size_t(count));
    t.xs.resize(1);
    auto rows = [&](V first) {
      Vs v;
      for (int i = 0; i < count; ++i)
        v.push_back(element(e, first, e.i(i * s.hidden), dtype));
      return v;
    };
    Choice start = choice(token, e.i(0), c);
    Vs carried = zero_sums(e, t);
    if (s.bias) carried.push_back(e.zero(Ty::F32, count == 1 ? -1 : count));
    carried.insert(carried.end(), {start.slot, start.row, start.weights});
    carried = e.loop(e.i(0), e.i(s.top_k), 1, carried, [&](V j, Vs in) {
      V weights = in.back(), row = in[in.size() - 2], slot = in[in.size() - 3];
      in.resize(in.size() - 3);
      V last = e.ge(j, e.i(s.top_k - 1));
      Choice next = choice(token, e.select(last, e.i(0), e.add(j, 1)),
                           e.select(last, next_c, c));
      Vs out = e.if_values(
          e.ge(slot, e.i(0)),
          [&] {
            DotTile own = t;
            own.weights = rows(weights);
            if (count > 1) own.ahead = rows(next.weights);
            own.xs = {e.at(buffer(B::Activated), e.mul(slot, s.hidden))};
            Vs sums = dot_tile(e, own, Vs(in.begin(), in.begin() + count));
            if (s.bias) {
              V w = e.load(DType::F32, e.at(buffer(B::Weights),
                                            e.add(e.mul(token, s.top_k), j)));
              V p = e.at(buffer(B::BiasDown), row);
              V b = count == 1 ? e.load(DType::F32, p)
                               : e.vload(DType::F32, p, nullptr, count);
              sums.push_back(
                  e.fma(b, count == 1 ? w : e.splat(w, count), in.back()));
            }
            return sums;
          },
          [&] { return in; });
      out.insert(out.end(), {next.slot, next.row, next.weights});
      return out;
    });
    V y = sums_of(e, Vs(carried.begin(), carried.begin() + count));
    if (s.bias) y = e.add(y, carried[size_t(count)]);
    V to = e.at(buffer(B::Y), e.add(e.mul(token, s.dim), c));
    count == 1 ? e.store(DType::F32, y, to) : e.vstore(DType::F32, y, to);
  }

  void down(int64_t per_task) const {
    V c0 = e.mul(e.task(), per_task);
    V c1 = e.min(e.add(c0, per_task), e.i(s.dim));
    const int w = dot_tile_weights(e, 1);
    V whole = e.add(c0, e.and_(e.sub(c1, c0), e.i(-int64_t(w))));
    auto tokens = [&](V c, V next_c, int count) {
      e.loop(e.i(0), e.i(s.tokens), 1,
             [&](V token) { down_tile(token, c, next_c, count); });
    };
    if (s.dim >= w)
      e.loop(c0, whole, w, [&](V c) {
        V more = e.le(e.add(c, 2 * w), whole);
        tokens(c, e.select(more, e.add(c, w), c), w);
      });
    if (s.dim % w) e.loop(whole, c1, 1, [&](V c) { tokens(c, c, 1); });
  }
};

}  // namespace

std::vector<MoeLaunch> moe_few(const MoeSpec& s, DType dtype, const Target&) {
  const int64_t size = dtype_size(dtype);
  const int64_t features = streamed_rows(
      s.hidden * s.top_k, s.dim * size * (is_gated(s.activation) ? 2 : 1), 8);
  const int64_t channels = streamed_rows(s.dim, s.hidden * size * s.top_k, 8);
  MoeLaunch up, down;
  up.buffers = {B::X,    B::Weights, B::Offsets,  B::Perm,     B::Up,
                B::Gate, B::BiasUp,  B::BiasGate, B::Activated};
  down.buffers = {B::Weights,  B::Offsets,   B::Inverse, B::Down,
                  B::BiasDown, B::Activated, B::Y};
  const std::string name = fmt::format(" {} by ", dtype_name(dtype));
  up.spec.key = moe_key("moe few_up", s) + name + std::to_string(features);
  down.spec.key = moe_key("moe few_down", s) + name + std::to_string(channels);
  up.spec.tasks = s.slots() * ((s.hidden + features - 1) / features);
  down.spec.tasks = (s.dim + channels - 1) / channels;
  const double product = double(s.slots()) * double(s.dim);
  up.spec.flops = 2 * product * double(s.hidden_rows());
  down.spec.flops = 2 * product * double(s.hidden);
  up.spec.bytes = double(size) * up.spec.flops / 2;
  down.spec.bytes = double(size) * down.spec.flops / 2;
  up.spec.emit = [s, dtype, features, list = up.buffers](Emit& e) {
    Few{e, s, dtype, {e, list}}.up(features);
  };
  down.spec.emit = [s, dtype, channels, list = down.buffers](Emit& e) {
    Few{e, s, dtype, {e, list}}.down(channels);
  };
  return {up, down};
}

}  // namespace moec
