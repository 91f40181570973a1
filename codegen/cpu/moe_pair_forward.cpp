// The forward of moe_forward.cpp on bf16 and split f32.
#include <algorithm>

#include "codegen/cpu/moe_pair.h"

namespace moec {

namespace {

using B = MoeBuffer;

// The weights with both widths padded by zeros, in rows.
MoeLaunch pack_weights(const MoeSpec& s) {
  constexpr int64_t kRows = 128;  // of a task
  struct Matrix {
    B from, to;
    int64_t rows, columns;
  };
  std::vector<Matrix> all = {{B::Up, B::PackedUp, s.hidden, s.dim},
                             {B::Down, B::PackedDown, s.dim, s.hidden}};
  if (is_gated(s.activation))
    all.push_back({B::Gate, B::PackedGate, s.hidden, s.dim});
  MoeLaunch l;
  std::vector<int64_t> tasks;  // of an expert, up to each matrix
  for (const Matrix& m : all) {
    l.buffers.push_back(m.from), l.buffers.push_back(m.to);
    tasks.push_back((tasks.empty() ? 0 : tasks.back()) +
                    (m.rows + kRows - 1) / kRows);
  }
  l.spec.key = moe_key("moe pack", s);
  l.spec.tasks = s.experts * tasks.back();
  l.spec.bytes =
      2.0 * double(all.size()) * double(moe_packed_bytes(s, B::PackedUp));
  l.spec.emit = [=](Emit& e) {
    V expert = e.udiv(e.task(), e.i(tasks.back()));
    V number = e.urem(e.task(), e.i(tasks.back()));
    for (size_t i = 0; i < all.size(); ++i) {
      const Matrix& m = all[i];
      const int64_t before = i ? tasks[i - 1] : 0;
      const int64_t rows = pair_padded(m.rows),
                    columns = pair_padded(m.columns);
      V here = e.and_(e.ge(number, e.i(before)), e.lt(number, e.i(tasks[i])));
      e.if_(here, [&] {
        V first = e.mul(e.add(number, -before), kRows);
        V n = e.min(e.sub(e.i(rows), first), e.i(kRows));
        V from =
            e.at(e.buffer(int(2 * i)), e.mul(expert, m.rows * m.columns), 2);
        V to = e.at(e.buffer(int(2 * i + 1)), e.mul(expert, rows * columns), 2);
        PairRows source{from, m.columns, e.i(m.rows), m.columns};
        pack_plain(e, source, first, n, e.at(to, e.mul(first, columns), 2),
                   2 * columns);
      });
    }
  };
  return l;
}

// Scratch, in bytes: tokens and activations of the task's panels as pairs,
// sums of one block of up and gate, results, split rows of weights.
struct Layout {
  int64_t x = 0, a, h, y, up, job, end;
  Layout(const MoeSpec& s, const PairCut& c) {
    const int64_t slot = 2 * pair_planes(s), slots = c.slots;
    const int64_t dim = pair_padded(s.dim);
    a = x + slots * slot * dim;
    h = a + slots * slot * pair_padded(c.features);
    y = h + 2 * PairExperts::kBlock;
    up = y + c.sums_bytes;
    job = up + 2 * PairExperts::weights_bytes(s, c);
    end = job + kSplitJobBytes;
  }
};

struct Forward : PairExperts {
  // activate(C, b_up, b_gate, H, A, rows): saves `rows` pre-activations of a
  // block in H, [feature][slot], and makes A, pairs of features.
  Fn activations() {
    const std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr,
                                    Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define("activate", params, [&](const Vs& a) {
      const int L = e.lanes();
      V rows = a[5];
      // the activations of a row, in two halves
      auto feature = [&](V row, V exists) {
        V at = e.mul(row, kPanel);
        auto values = [&](int gate) {
          V bias = e.zero(Ty::F32, 0);
          if (s.bias) {
            V last = e.min(row, e.add(rows, -1));
            bias = e.splat(e.load(dtype, e.at(a[1 + gate], last, size)));
          }
          Vs x;
          for (int j = 0; j < 2; ++j) {
            V sum = e.at(e.at(a[0], gate * kBlock, 1), at);
            x.push_back(e.vload(DType::F32, e.at(sum, j * L)));
            if (s.bias) x[j] = e.add(x[j], bias);
          }
          V to = e.at(a[3], e.add(at, gate * s.hidden * kPanel), size);
          // lines of memory that are not read again soon
          Vs lines = x;
          if (s.bf16) lines = {e.revector(e.to_bf16(x[0], x[1]), Ty::I32)};
          for (size_t j = 0; j < lines.size(); ++j) {
            V p = e.at(to, int64_t(j) * L);
            if (!exists)
              e.vstore_stream(s.bf16 ? DType::I32 : DType::F32, lines[j], p);
            else
              e.store_raw(lines[j], p, 4, e.splat(exists, L));
          }
          return x;
        };
        Vs up = values(0), gate(2, nullptr);
        if (gated) gate = values(1);
        for (int j = 0; j < 2; ++j) {
          up[j] = activate(e, s.activation, gate[j], up[j], s.bf16);
          if (exists) up[j] = e.select(e.splat(exists), up[j], e.f(0));
        }
        return up;
      };
      V end = e.and_(e.add(rows, 1), e.i(-2));
      e.loop(e.i(0), end, 2, [&](V row) {
        V next = e.add(row, 1);
        Vs low = feature(row, nullptr);
        Vs high = feature(next, s.hidden % 2 ? e.lt(next, rows) : nullptr);
        V to = e.at(a[4], e.mul(row, kPanel / 2));
        for (int j = 0; j < 2; ++j)
          store_pairs(in_planes(low[j]), in_planes(high[j]), e.at(to, j * L));
      });
      if (hidden != s.hidden) zero_rows(a[4], end);
    });
  }

  // What a task works with.
  struct Weights {
    V up, gate, down;
  };
  WeightBlocks blocks(const Weights& w) {
    const Layout at(s, fit);
    return {part(at.job), part(at.up), SplitKind::Rows,
            [=, this](V feature) {
              V row = e.mul(feature, s.dim);
              return weights(e.at(w.up, row),
                             gated ? e.at(w.gate, row) : nullptr, s.dim, s.dim);
            },
            [=, this](V channel, V from, int64_t width) {
              V first = e.add(e.mul(channel, s.hidden), from);
              return weights(e.at(w.down, first), nullptr, s.hidden, width);
            }};
  }

  // Features from `from` on of all panels: H, and A as pairs.
  void up_and_gate(const ExpertTask& t, const Weights& w, V from,
                   int64_t width) {
    const Layout at(s, fit);
    const int64_t second = kPairStep * 2 * planes * dim;  // its rows in bytes
    for_blocks(width, [&](V block, V rows) {
      V f = e.add(from, block), row = e.mul(f, row_length(s.dim));
      V up_rows, gate_rows;
      if (ahead) {
        up_rows = take_features(blocks(w), from, width, block,
                                split_turns(t, dim, gated ? 2 : 1));
      } else {
        up_rows =
            weight_rows(e.at(w.up, row, size), rows, s.dim, s.dim, part(at.up));
      }
      if (planes > 1) gate_rows = e.at(up_rows, second, 1);
      if (gated && !ahead)
        gate_rows =
            weight_rows(e.at(w.gate, row, size), rows, s.dim, s.dim, gate_rows);
      V at_bias = e.add(e.mul(t.expert, s.hidden), f);
      for_panels(t.count, [&](V, V valid, V number) {
        V x = e.at(part(at.x), e.mul(number, x_panel), 1), c = part(at.h);
        auto multiply = [&](V rows, V sums) {
          call_product(valid, dim, e.i1(false),
                       ahead ? SplitKind::Rows : SplitKind::None, part(at.job),
                       {rows, x, sums, e.i(dim)});
        };
        multiply(up_rows, c);
        if (gated) multiply(gate_rows, e.at(c, kBlock, 1));
        V saved = e.add(e.mul(e.add(t.panel, number), s.hidden_rows()), f);
        V a = e.add(e.mul(number, h_panel), e.mul(block, 64 * planes));
        e.call(activations(),
               {c, element(B::BiasUp, at_bias), element(B::BiasGate, at_bias),
                this->row(B::Saved, saved), e.at(part(at.a), a, 1), rows});
      });
    });
  }

  void task(const ExpertTask& t, bool packed) {
    const Layout at(s, fit);
    V matrix = e.mul(t.expert, packed ? hidden * dim : s.hidden * s.dim);
    Weights w{element(packed ? B::PackedUp : B::Up, matrix), nullptr,
              element(packed ? B::PackedDown : B::Down, matrix)};
    if (gated) w.gate = element(packed ? B::PackedGate : B::Gate, matrix);
    begin_pairs(e);
    for_panels(t.count, [&](V first, V valid, V number) {
      V perm = e.at(buffer(B::Perm), e.add(t.slot, first));
      e.call(gather(), {buffer(B::X), perm, valid,
                        e.at(part(at.x), e.mul(number, x_panel), 1)});
    });
    if (ahead) start_weights(blocks(w));
    for_features([&](V from, int64_t width) {
      const int64_t k = pair_padded(width);
      up_and_gate(t, w, from, width);
      for_blocks(s.dim, [&](V c, V rows) {
        const int64_t stride = row_length(s.hidden);
        V down_rows;
        if (ahead) {
          down_rows =
              take_channels(blocks(w), from, width, c, split_turns(t, k, 1));
        } else {
          V first_row = e.at(w.down, e.add(e.mul(c, stride), from), size);
          down_rows =
              weight_rows(first_row, rows, width, s.hidden, part(at.up));
        }
        for_panels(t.count, [&](V first, V valid, V number) {
          V a = e.at(part(at.a), e.mul(number, h_panel), 1);
          V y = sum_block(part(at.y), number, c);
          add_product(from, valid, planes > 1 ? k : hidden,
                      ahead ? SplitKind::Rows : SplitKind::None, part(at.job),
                      {down_rows, a, y, e.i(k)});
          V to = e.mul(e.add(t.slot, first), s.dim);
          V bias = element(B::BiasDown, e.add(e.mul(t.expert, s.dim), c));
          if_last(from, width, [&] {
            call_flip(s.dim, c, s.bias, s.dim,
                      {y, bias, element(B::Rows, e.add(to, c)), valid});
          });
        });
      });
    });
    e.fence();  // streamed lines are visible before the launch ends
    end_pairs(e);
  }
};

}  // namespace

std::vector<MoeLaunch> moe_pair_forward(const MoeSpec& s,
                                        const MoeEpilogue& epilogue) {
  const bool packed = s.bf16 && !pair_weights_fit(s);
  const PairCut cut = pair_cut(s, false);
  MoeLaunch l;
  l.buffers = {B::X,      B::Offsets,  B::Perm,     B::Up,    B::Gate, B::Down,
               B::BiasUp, B::BiasGate, B::BiasDown, B::Saved, B::Rows};
  if (packed)
    for (B b : {B::PackedUp, B::PackedGate, B::PackedDown})
      l.buffers.push_back(b);
  l.spec.key = moe_key("moe experts", s);
  l.spec.tasks = expert_tasks(s, cut.slots);
  l.spec.scratch_bytes = Layout(s, cut).end;
  l.spec.flops = 2.0 * double(s.slots()) * double(s.dim) *
                 double(s.hidden_rows() + s.hidden);
  l.spec.bytes =
      double(s.bf16 ? 2 : 4) *
      (double(s.experts * s.dim) * double(s.hidden_rows() + s.hidden) +
       double(s.slots()) * double(2 * s.dim + s.hidden_rows()));
  l.spec.emit = [s, packed, cut, list = l.buffers](Emit& e) {
    Forward f{{e, s, {e, list}, cut}};
    for_expert_task(e, s, f.cut(), f.buffer(B::Offsets),
                    [&](const ExpertTask& t) { f.task(t, packed); });
  };
  std::vector<MoeLaunch> all;
  if (packed) all.push_back(pack_weights(s));
  all.push_back(l);
  all.push_back(moe_combine(s, true, epilogue));
  return all;
}

}  // namespace moec
