// The two phases of moe_backward.cpp on bf16 and split f32: per task of slots
// dA', dH, the weighted activations and dX, on blocks of weights turned as they
// are needed; then the weights' gradients (moe_pair_weights.cpp).
#include <algorithm>

#include "codegen/cpu/moe_pair.h"

namespace moec {

namespace {

using B = MoeBuffer;

// Scratch, in bytes: dO and dH of the task's panels as pairs, dA' and dX,
// turned blocks of two matrices, combine weights and their gradient.
struct Layout {
  int64_t g = 0, up, gate, sums, dx, turned, turned_gate, columns, job, w, dw,
          end;
  Layout(const MoeSpec& s, const PairCut& c) {
    const int64_t slot = 2 * pair_planes(s), slots = c.slots;
    const int64_t h = slots * slot * pair_padded(c.features);
    up = g + slots * slot * pair_padded(s.dim);
    gate = up + h;
    sums = gate + (is_gated(s.activation) ? h : 0);
    dx = sums + PairExperts::kBlock;
    turned = dx + c.sums_bytes;
    const int64_t longest =
        std::max(pair_padded(s.dim), pair_padded(c.features));
    // bf16: a block of each; f32: two of both, and what turns them
    const int64_t matrix = kPairStep * slot * longest;
    turned_gate = turned + matrix;
    columns =
        turned + (s.bf16 ? 2 * matrix : 2 * PairExperts::weights_bytes(s, c));
    job = columns + (s.bf16 ? 0 : 2 * kPairStep * 4 * longest);
    w = job + kSplitJobBytes;
    dw = w + slots * 4;
    end = dw + slots * 4;
  }
};

struct Hidden : PairExperts {
  // hidden(C, H, dH, A, Pu, Pg, w, dw, rows): from dA' of a block of features
  // dw += <dA', A>, A = w A, dH, and dH again as pairs.
  Fn hidden_block() {
    std::vector<Ty> params(8, Ty::Ptr);
    params.push_back(Ty::I64);
    return e.define("hidden", params, [&](const Vs& a) {
      const int L = e.lanes();
      const int64_t to_gate = s.hidden * kPanel;
      V rows = a[8], end = e.and_(e.add(rows, 1), e.i(-2));
      auto vector = [&](V base, int j) {
        return e.vload(DType::F32, e.at(base, j * L));
      };
      Vs w{vector(a[6], 0), vector(a[6], 1)};
      Vs dw{vector(a[7], 0), vector(a[7], 1)};
      dw = e.loop(e.i(0), end, 2, dw, [&](V row, Vs dw) {
        // gradients of the two rows, in halves, each in planes
        std::vector<Vs> up, gate;
        for (int q = 0; q < 2; ++q) {
          V r = e.add(row, q), at = e.mul(r, kPanel), exists = nullptr;
          if (q && s.hidden % 2) exists = e.lt(r, rows);
          V mask = exists ? e.splat(exists) : nullptr;
          auto load = [&](int64_t offset) {
            return e.vload(dtype, e.at(e.at(a[1], at, size), offset, size),
                           mask);
          };
          auto store_line = [&](const Vs& x, V base, int64_t offset) {
            store_row(x[0], x[1], e.at(e.at(base, at, size), offset, size),
                      exists);
          };
          Vs value, by_up, by_gate;
          for (int j = 0; j < 2; ++j) {
            V da = e.vload(DType::F32, e.at(e.at(a[0], at), j * L), mask);
            ActivationGrad f = activate_grad(
                e, s.activation, gated ? load(to_gate + j * L) : nullptr,
                load(j * L), s.bf16);
            dw[j] = e.fma(da, f.value, dw[j]);
            da = e.mul(da, w[j]);
            value.push_back(e.mul(f.value, w[j]));
            by_up.push_back(e.mul(da, f.by_up));
            up.push_back(in_planes(by_up[j]));
            if (!gated) continue;
            by_gate.push_back(e.mul(da, f.by_gate));
            gate.push_back(in_planes(by_gate[j]));
          }
          store_line(value, a[3], 0);
          store_line(by_up, a[2], 0);
          if (gated) store_line(by_gate, a[2], to_gate);
        }
        V to = e.mul(row, kPanel / 2);
        for (int j = 0; j < 2; ++j) {
          auto store = [&](const std::vector<Vs>& x, V base) {
            store_pairs(x[j], x[2 + j], e.at(e.at(base, to), j * L));
          };
          store(up, a[4]);
          if (gated) store(gate, a[5]);
        }
        return dw;
      });
      for (int j = 0; j < 2; ++j)
        e.vstore(DType::F32, dw[j], e.at(a[7], j * L));
      if (hidden == s.hidden) return;
      zero_rows(a[4], end);
      if (gated) zero_rows(a[5], end);
    });
  }

  // turn(W, dst): dst[column][row], rows padded, of 32 columns of a matrix.
  Fn turn(int64_t rows, int64_t columns, int64_t stride) {
    std::string name = "turn" + std::to_string(rows) + "_" +
                       std::to_string(columns) + "_" + std::to_string(stride);
    return e.define(name, {Ty::Ptr, Ty::Ptr}, [&, rows](const Vs& a) {
      pack_transposed(e, {a[0], stride, e.i(rows), columns, planes, kPairStep},
                      e.i(0), e.i(pair_padded(rows)), a[1],
                      2 * planes * pair_padded(rows));
    });
  }
  // The same for the columns from `first` of a matrix with rows of `stride`,
  // of which `columns` exist.
  void call_turn(int64_t rows, int64_t columns, int64_t stride, V w, V first,
                 V dst) {
    const int64_t whole = columns / kPairStep * kPairStep;
    Vs args{e.at(w, first, size), dst};
    auto run = [&](int64_t n) { e.call(turn(rows, n, stride), args); };
    if (whole == columns) return run(kPairStep);
    if (!whole) return run(columns);
    e.if_(
        e.lt(first, e.i(whole)), [&] { run(kPairStep); },
        [&] { run(columns - whole); });
  }

  // The combine weights of a panel's lanes, 0 past the last slot; their
  // gradient starts with what the bias of W_down contributes.
  void start(const ExpertTask& t, V first, V valid, V g, V w, V dw) {
    load_slot_weights(e, buffer, t, first, valid, kPanel, w);
    V bias = element(B::BiasDown, e.mul(t.expert, s.dim));
    const int L = e.lanes();
    for (int j = 0; j < 2; ++j) {
      V sum = e.zero(Ty::F32, 0);
      if (s.bias)
        sum = e.loop(e.i(0), e.i(s.dim), 1, {sum}, [&](V c, Vs sum) {
          V b = e.load(dtype, e.at(bias, c, size));
          V odd = e.splat(e.ne(e.and_(c, e.i(1)), e.i(0)));
          // c's pair in its step of planes
          V step = e.mul(e.and_(c, e.i(-kPairStep)), planes);
          V pair = e.add(step, e.and_(c, e.i(kPairStep - 2)));
          V at = e.at(g, e.add(e.mul(pair, kPanel / 2), j * L));
          V value = nullptr;
          for (int i = 0; i < planes; ++i) {
            V x = e.load_raw(Ty::I32, e.at(at, i * kPairStep * kPanel / 2), L);
            x = e.select(odd, e.and_(x, e.i32(0xffff0000)),
                         e.shl(x, e.i32(16)));
            x = e.bits(x, Ty::F32);
            value = value ? e.add(value, x) : x;
          }
          return Vs{e.fma(e.splat(b), value, sum[0])};
        })[0];
      e.vstore(DType::F32, sum, e.at(dw, j * L));
    }
  }

  void task(const ExpertTask& t) {
    const Layout at(s, fit);
    V matrix = e.mul(t.expert, s.hidden * s.dim);
    V w_up = element(B::Up, matrix), w_down = element(B::Down, matrix);
    V w_gate = gated ? element(B::Gate, matrix) : w_up;
    V sums = part(at.sums), turned = part(at.turned);
    auto panel = [&](int64_t offset, V number, int64_t bytes) {
      return e.at(part(offset), e.mul(number, bytes), 1);
    };
    begin_pairs(e);
    for_panels(t.count, [&](V first, V valid, V number) {
      V g = panel(at.g, number, x_panel);
      V perm = e.at(buffer(B::Perm), e.add(t.slot, first));
      e.call(gather(), {buffer(B::Dy), perm, valid, g});
      start(t, first, valid, g, e.at(part(at.w), first),
            e.at(part(at.dw), first));
    });
    const WeightBlocks blocks = {
        part(at.job), part(at.turned), SplitKind::Turned,
        [&](V feature) {
          SplitSource x =
              weights(e.at(w_down, feature), nullptr, s.hidden, s.dim);
          x.turned = part(at.columns);
          return x;
        },
        [&](V channel, V from, int64_t width) {
          V first = e.add(e.mul(from, s.dim), channel);
          SplitSource x =
              weights(e.at(w_up, first), gated ? e.at(w_gate, first) : nullptr,
                      s.dim, width);
          x.turned = part(at.columns);
          return x;
        }};
    const SplitKind job = ahead ? SplitKind::Turned : SplitKind::None;
    if (ahead) start_weights(blocks);
    for_features([&](V from, int64_t width) {
      for_blocks(width, [&](V block, V rows) {
        V f = e.add(from, block), down = turned;
        if (ahead) {
          down =
              take_features(blocks, from, width, block, split_turns(t, dim, 1));
        } else {
          call_turn(s.dim, width, s.hidden, e.at(w_down, from, size), block,
                    turned);
        }
        for_panels(t.count, [&](V first, V valid, V number) {
          call_product(valid, dim, e.i1(false), job, part(at.job),
                       {down, panel(at.g, number, x_panel), sums, e.i(dim)});
          V h = e.add(e.mul(e.add(t.panel, number), s.hidden_rows()), f);
          V a = e.add(e.mul(e.add(t.panel, number), s.hidden), f);
          V pairs = e.mul(block, 64 * planes);
          V up = e.at(panel(at.up, number, h_panel), pairs, 1);
          V gate = gated ? e.at(panel(at.gate, number, h_panel), pairs, 1) : up;
          e.call(hidden_block(),
                 {sums, row(B::Saved, h), row(B::DHidden, h),
                  row(B::Activated, a), up, gate, e.at(part(at.w), first),
                  e.at(part(at.dw), first), rows});
        });
      });
      const int64_t k = pair_padded(width);
      V rows = e.mul(from, s.dim);
      for_blocks(s.dim, [&](V c, V) {
        V up_rows = turned, gate_rows = part(at.turned_gate);
        if (ahead) {
          up_rows = take_channels(blocks, from, width, c,
                                  split_turns(t, k, gated ? 2 : 1));
          gate_rows = e.at(up_rows, kPairStep * 2 * planes * k, 1);
        } else {
          call_turn(width, s.dim, s.dim, e.at(w_up, rows, size), c, up_rows);
          if (gated)
            call_turn(width, s.dim, s.dim, e.at(w_gate, rows, size), c,
                      gate_rows);
        }
        for_panels(t.count, [&](V first, V valid, V number) {
          V dx = sum_block(part(at.dx), number, c);
          add_product(from, valid, k, job, part(at.job),
                      {up_rows, panel(at.up, number, h_panel), dx, e.i(k)});
          if (gated)
            call_product(
                valid, k, e.i1(true), job, part(at.job),
                {gate_rows, panel(at.gate, number, h_panel), dx, e.i(k)});
          V to = e.add(e.mul(e.add(t.slot, first), s.dim), c);
          if_last(from, width, [&] {
            call_flip(s.dim, c, false, s.dim,
                      {dx, dx, element(B::Rows, to), valid});
          });
        });
      });
    });
    e.loop(e.i(0), t.count, 1, [&](V i) {
      V slot = e.add(t.slot, i);
      V choice = e.load(DType::I32, e.at(buffer(B::Perm), slot));
      e.store(DType::F32, e.load(DType::F32, e.at(part(at.dw), i)),
              e.at(buffer(B::DWeights), e.sext(choice, Ty::I64)));
    });
    end_pairs(e);
  }
};

}  // namespace

std::vector<MoeLaunch> moe_pair_backward(const MoeSpec& s,
                                         const MoeEpilogue& epilogue) {
  const double product = 2.0 * double(s.slots()) * double(s.dim);
  const double rows = double(s.hidden_rows() + s.hidden);
  const PairCut cut = pair_cut(s, true);
  MoeLaunch hidden;
  hidden.buffers = {B::Dy,   B::Weights,  B::Offsets,     B::Perm,
                    B::Up,   B::Saved,    B::DHidden,     B::Activated,
                    B::Down, B::BiasDown, B::SlotWeights, B::DWeights,
                    B::Rows, B::Gate};
  hidden.spec.key = moe_key("moe experts_grad", s);
  hidden.spec.tasks = expert_tasks(s, cut.slots);
  hidden.spec.scratch_bytes = Layout(s, cut).end;
  hidden.spec.flops = product * rows;
  hidden.spec.bytes =
      double(s.bf16 ? 2 : 4) *
      (double(s.experts * s.dim) * rows +
       double(s.slots()) * double(2 * s.dim + 2 * s.hidden_rows() + s.hidden));
  hidden.spec.emit = [s, cut, list = hidden.buffers](Emit& e) {
    Hidden h{{e, s, {e, list}, cut}};
    for_expert_task(e, s, h.cut(), h.buffer(B::Offsets),
                    [&](const ExpertTask& t) { h.task(t); });
  };

  return {hidden, moe_combine(s, false, epilogue), moe_pair_weights(s)};
}

}  // namespace moec
