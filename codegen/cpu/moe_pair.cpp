#include "codegen/cpu/moe_pair.h"

#include <algorithm>

namespace moec {

namespace {

using B = MoeBuffer;

int64_t pair_panels(const MoeSpec& s) {
  return s.slots() / PairExperts::kPanel + s.experts;
}

// Whether the tiles can read weights as they are.
bool weights_fit(const MoeSpec& s) {
  return s.dim % kPairStep == 0 && s.hidden % kPairStep == 0;
}

// Tiles of the last rows of a panel read on into what follows.
constexpr int64_t kSlack = 2048;

}  // namespace

int64_t moe_saved_bytes(const MoeSpec& s) {
  if (!s.bf16) return 4 * s.saved();
  return pair_panels(s) * s.hidden_rows() * 64 + kSlack;
}

int64_t moe_activated_bytes(const MoeSpec& s) {
  if (!s.bf16) return 4 * s.padded_slots() * s.hidden;
  return pair_panels(s) * s.hidden * 64 + kSlack;
}

int64_t moe_packed_bytes(const MoeSpec& s, MoeBuffer b) {
  const bool none = b == B::PackedGate && !is_gated(s.activation);
  if (none || weights_fit(s)) return 0;
  return 2 * s.experts * pair_padded(s.dim) * pair_padded(s.hidden);
}

void PairExperts::for_panels(V count, const std::function<void(V, V, V)>& f) {
  e.loop(e.i(0), count, kPanel, [&](V first) {
    f(first, e.min(e.sub(count, first), e.i(kPanel)), e.lshr(first, e.i(5)));
  });
}

void PairExperts::for_blocks(int64_t n, const std::function<void(V, V)>& f) {
  e.loop(e.i(0), e.i(pair_padded(n)), kPairStep, [&](V first) {
    f(first, e.min(e.sub(e.i(n), first), e.i(kPairStep)));
  });
}

Fn PairExperts::gather() {
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
  return e.define("gather", params, [&](const Vs& a) {
    const int L = e.lanes();
    V last = e.add(a[2], -1);
    for (int half = 0; half < 2; ++half) {
      Vs rows;
      for (int r = 0; r < L; ++r) {
        V slot = e.min(e.i(half * L + r), last);
        V choice = e.load(DType::I32, e.at(a[1], slot));
        V token = e.udiv(e.zext(choice, Ty::I64), e.i(s.top_k));
        rows.push_back(e.at(a[0], e.mul(token, s.dim), 2));
      }
      pack_columns(e, rows, s.dim, e.at(a[3], half * L), 4 * kPanel);
    }
  });
}

void PairExperts::zero_rows(V pairs, V from) {
  // a row's share of a line of pairs is one vector
  e.loop(from, e.i(kPairStep), 1, [&](V row) {
    e.store_raw(e.zero(Ty::I32, 0), e.at(pairs, e.mul(row, kPanel / 2)), 64);
  });
}

Fn PairExperts::product(int64_t lda, bool accumulate, int64_t a_step) {
  std::string name = "product" + std::to_string(lda) + "_" +
                     std::to_string(a_step) + (accumulate ? "add" : "");
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define(name, params, [&](const Vs& a) {
    pair_product(e,
                 {.a = a[0],
                  .lda = lda,
                  .b = a[1],
                  .ldb = 4 * kPanel,
                  .c = a[2],
                  .ldc = 4 * kPanel,
                  .a_step = a_step},
                 e.i(kPairStep), a[3], accumulate);
  });
}

Fn PairExperts::flip(int rows, bool bias, int64_t stride) {
  std::string name = "flip" + std::to_string(rows) + "_" +
                     std::to_string(stride) + (bias ? "bias" : "");
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  return e.define(name, params, [&, rows](const Vs& a) {
    const int L = e.lanes();
    V mask = rows < kPairStep ? e.mask(e.i(rows), 2 * L) : nullptr;
    auto half = [&](int first) {
      auto row = [&](int r) {
        if (r >= rows) return e.zero(Ty::F32, 0);
        V x = e.vload(DType::F32, e.at(a[0], r * kPanel + first));
        if (!bias) return x;
        return e.add(x, e.splat(e.load(DType::BF16, e.at(a[1], r, 2))));
      };
      Vs pairs;
      for (int r = 0; r < kPairStep; r += 2)
        pairs.push_back(e.pack_bf16_pair(row(r), row(r + 1)));
      pairs = e.transpose(pairs);
      auto store = [&](int lane) {
        V p = e.at(a[2], (first + lane) * stride, 2);
        e.store_raw(e.revector(pairs[lane], Ty::I16), p, 2, mask);
      };
      e.if_(
          e.ge(a[3], e.i(first + L)),
          [&] {
            for (int lane = 0; lane < L; ++lane) store(lane);
          },
          [&] {
            for (int lane = 0; lane < L; ++lane)
              e.if_(e.lt(e.i(first + lane), a[3]), [&] { store(lane); });
          });
    };
    half(0);
    e.if_(e.gt(a[3], e.i(L)), [&] { half(L); });
  });
}

void PairExperts::call_flip(int64_t n, V first, bool bias, int64_t stride,
                            const Vs& args) {
  const int64_t whole = n / kPairStep * kPairStep;
  auto run = [&](int rows) { e.call(flip(rows, bias, stride), args); };
  if (whole == n) return run(kPairStep);
  if (!whole) return run(int(n));
  e.if_(
      e.lt(first, e.i(whole)), [&] { run(kPairStep); },
      [&] { run(int(n - whole)); });
}

// ---- forward

namespace {

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
// sums of one block of up and gate.
struct Layout {
  int64_t x = 0, a, sums, end;
  explicit Layout(const MoeSpec& s)
      : a(x + PairExperts::kTask * 2 * pair_padded(s.dim)),
        sums(a + PairExperts::kTask * 2 * pair_padded(s.hidden)),
        end(sums + 2 * PairExperts::kBlock) {}
};

struct Forward : PairExperts {
  // activate(C, b_up, b_gate, H, A, rows): saves `rows` pre-activations of a
  // block in H, as bf16 [feature][slot], and makes A, pairs of features.
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
            bias = e.splat(e.load(DType::BF16, e.at(a[1 + gate], last, 2)));
          }
          Vs x;
          for (int j = 0; j < 2; ++j) {
            V sum = e.at(e.at(a[0], gate * kBlock, 1), at);
            x.push_back(e.vload(DType::F32, e.at(sum, j * L)));
            if (s.bias) x[j] = e.add(x[j], bias);
          }
          V to = e.at(a[3], e.add(at, gate * s.hidden * kPanel), 2);
          V line = e.to_bf16(x[0], x[1]);
          // a line of memory that is not read again soon
          if (!exists)
            e.vstore_stream(DType::I32, e.revector(line, Ty::I32), to);
          else
            e.store_raw(line, to, 2, e.splat(exists, 2 * L));
          return x;
        };
        Vs up = values(0), gate(2, nullptr);
        if (gated) gate = values(1);
        for (int j = 0; j < 2; ++j) {
          up[j] = activate(e, s.activation, gate[j], up[j], true);
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
          e.store_raw(e.pack_bf16_pair(low[j], high[j]), e.at(to, j * L), 64);
      });
      if (hidden != s.hidden) zero_rows(a[4], end);
    });
  }

  void task(const ExpertTask& t, bool packed) {
    const Layout at(s);
    V matrix = e.mul(t.expert, hidden * dim);
    V w_up = bf16(packed ? B::PackedUp : B::Up, matrix);
    V w_gate = gated ? bf16(packed ? B::PackedGate : B::Gate, matrix) : w_up;
    V w_down = bf16(packed ? B::PackedDown : B::Down, matrix);
    V h_rows = e.mul(t.panel, s.hidden_rows() * kPanel);
    begin_pairs(e);
    for_panels(t.count, [&](V first, V valid, V number) {
      V perm = e.at(buffer(B::Perm), e.add(t.slot, first));
      e.call(gather(), {buffer(B::X), perm, valid,
                        e.at(part(at.x), e.mul(number, x_panel), 1)});
    });
    for_blocks(s.hidden, [&](V f, V rows) {
      V from = e.mul(f, dim);
      V at_bias = e.add(e.mul(t.expert, s.hidden), f);
      for_panels(t.count, [&](V, V, V number) {
        V x = e.at(part(at.x), e.mul(number, x_panel), 1), c = part(at.sums);
        Fn up = product(2 * dim, false);
        e.call(up, {e.at(w_up, from, 2), x, c, e.i(dim)});
        if (gated)
          e.call(up, {e.at(w_gate, from, 2), x, e.at(c, kBlock, 1), e.i(dim)});
        V row = e.add(e.mul(number, s.hidden_rows()), f);
        V h = bf16(B::Saved, e.add(h_rows, e.mul(row, kPanel)));
        V a = e.at(part(at.a), e.add(e.mul(number, h_panel), e.mul(f, 64)), 1);
        e.call(activations(), {c, bf16(B::BiasUp, at_bias),
                               bf16(B::BiasGate, at_bias), h, a, rows});
      });
    });
    for_blocks(s.dim, [&](V c, V) {
      for_panels(t.count, [&](V first, V valid, V number) {
        V a = e.at(part(at.a), e.mul(number, h_panel), 1);
        e.call(product(2 * hidden, false), {e.at(w_down, e.mul(c, hidden), 2),
                                            a, part(at.sums), e.i(hidden)});
        V to = e.mul(e.add(t.slot, first), s.dim);
        V bias = bf16(B::BiasDown, e.add(e.mul(t.expert, s.dim), c));
        call_flip(s.dim, c, s.bias, s.dim,
                  {part(at.sums), bias, bf16(B::Rows, e.add(to, c)), valid});
      });
    });
    e.fence();  // streamed lines are visible before the launch ends
    end_pairs(e);
  }
};

}  // namespace

std::vector<MoeLaunch> moe_pair_forward(const MoeSpec& s,
                                        const MoeEpilogue& epilogue) {
  const bool packed = !weights_fit(s);
  MoeLaunch l;
  l.buffers = {B::X,      B::Offsets,  B::Perm,     B::Up,    B::Gate, B::Down,
               B::BiasUp, B::BiasGate, B::BiasDown, B::Saved, B::Rows};
  if (packed)
    for (B b : {B::PackedUp, B::PackedGate, B::PackedDown})
      l.buffers.push_back(b);
  l.spec.key = moe_key("moe experts", s);
  l.spec.tasks = expert_tasks(s, PairExperts::kTask);
  l.spec.scratch_bytes = Layout(s).end;
  l.spec.flops = 2.0 * double(s.slots()) * double(s.dim) *
                 double(s.hidden_rows() + s.hidden);
  l.spec.bytes =
      2.0 * (double(s.experts * s.dim) * double(s.hidden_rows() + s.hidden) +
             double(s.slots()) * double(2 * s.dim + s.hidden_rows()));
  l.spec.emit = [s, packed, list = l.buffers](Emit& e) {
    Forward f{{e, s, {e, list}}};
    for_expert_task(e, s, PairExperts::kCut, f.buffer(B::Offsets),
                    [&](const ExpertTask& t) { f.task(t, packed); });
  };
  std::vector<MoeLaunch> all;
  if (packed) all.push_back(pack_weights(s));
  all.push_back(l);
  all.push_back(moe_combine(s, true, epilogue));
  return all;
}

}  // namespace moec
