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

bool pairs(const MoeSpec& s) { return s.bf16 || s.split; }

// Bytes of 32 slots in `rows` rows a panel; tiles of the last rows of a panel
// read on into what follows.
int64_t panel_rows_bytes(const MoeSpec& s, int64_t rows) {
  return pair_panels(s) * rows * PairExperts::kPanel * (s.bf16 ? 2 : 4) + 2048;
}

}  // namespace

int64_t moe_saved_bytes(const MoeSpec& s) {
  return pairs(s) ? panel_rows_bytes(s, s.hidden_rows()) : 4 * s.saved();
}

int64_t moe_hidden_grad_bytes(const MoeSpec& s) {
  if (pairs(s)) return moe_saved_bytes(s);
  // a tile of the last slots reads on
  return moe_activated_bytes(s) * (is_gated(s.activation) ? 2 : 1) + 1024;
}

int64_t moe_activated_bytes(const MoeSpec& s) {
  if (pairs(s)) return panel_rows_bytes(s, s.hidden);
  return 4 * s.slots() * ((s.hidden + 15) / 16 * 16);
}

PairCut pair_cut(const MoeSpec& s, bool backward) {
  // A task splits the weights anew, so it has as many slots as possible; sums
  // over few features are often passed through memory.
  constexpr int64_t kBytes = 1700 << 10, kMost = 256;
  constexpr int64_t kFeatures = 256, kFeaturesBackward = 128;
  if (s.bf16) return {s.hidden, kMost, PairExperts::kBlock};
  PairCut c;
  c.features = std::min(s.hidden, backward ? kFeaturesBackward : kFeatures);
  const int64_t operands = s.dim + (backward ? 2 : 1) * c.features;
  const int64_t slot = 2 * kSplitPlanes * operands + 4 * s.dim;
  c.slots = std::clamp<int64_t>(kBytes / slot / 32 * 32, 96, kMost);
  c.sums_bytes = c.features == s.hidden ? PairExperts::kBlock
                                        : 4 * c.slots * pair_padded(s.dim);
  return c;
}

int64_t moe_packed_bytes(const MoeSpec& s, MoeBuffer b) {
  const bool none = b == B::PackedGate && !is_gated(s.activation);
  if (none || !s.bf16 || weights_fit(s)) return 0;
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
        rows.push_back(e.at(a[0], e.mul(token, s.dim), size));
      }
      pack_columns(e, rows, s.dim, e.at(a[3], half * L), 4 * kPanel, false,
                   planes);
    }
  });
}

void PairExperts::zero_rows(V pairs, V from) {
  // a row's share of a line of pairs is one vector
  e.loop(from, e.i(kPairStep), 1, [&](V row) {
    for (int i = 0; i < planes; ++i)
      e.store_raw(e.zero(Ty::I32, 0),
                  e.at(pairs, e.add(e.mul(row, kPanel / 2),
                                    i * kPairStep * kPanel / 2)),
                  64);
  });
}

void PairExperts::store_row(V low, V high, V to, V exists) {
  const int L = e.lanes();
  if (s.bf16)
    return e.store_raw(e.to_bf16(low, high), to, exists ? 2 : 64,
                       exists ? e.splat(exists, 2 * L) : nullptr);
  V mask = exists ? e.splat(exists) : nullptr;
  e.store_raw(low, to, exists ? 4 : 64, mask);
  e.store_raw(high, e.at(to, L), exists ? 4 : 64, mask);
}

void PairExperts::store_pairs(const Vs& low, const Vs& high, V to) {
  for (int i = 0; i < planes; ++i) {
    V x = planes > 1 ? join_pair(e, low[i], high[i])
                     : e.pack_bf16_pair(low[i], high[i]);
    e.store_raw(x, e.at(to, i * kPairStep * kPanel / 2), 64);
  }
}

V PairExperts::weight_rows(V weight, V rows, int64_t columns, int64_t stride,
                           V dst) {
  if (planes == 1) return weight;
  std::vector<Ty> params = {Ty::Ptr, Ty::I64, Ty::Ptr};
  std::string name =
      "split" + std::to_string(columns) + "_" + std::to_string(stride);
  Fn split = e.define(name, params, [&](const Vs& a) {
    PairRows source{a[0], stride, a[1], columns, planes, kPairStep * stride};
    pack_plain(e, source, e.i(0), e.i(kPairStep), a[2],
               2 * planes * pair_padded(columns));
  });
  e.call(split, {weight, rows, dst});
  return dst;
}

void PairExperts::for_features(const std::function<void(V, int64_t)>& f) {
  const int64_t block = fit.features, whole = s.hidden / block * block;
  e.loop(e.i(0), e.i(whole), block, [&](V first) { f(first, block); });
  if (whole < s.hidden) f(e.i(whole), s.hidden - whole);
}

V PairExperts::sum_block(V sums, V number, V c) {
  if (fit.features == s.hidden) return sums;
  V panel = e.mul(number, dim * kPanel);
  return e.at(sums, e.add(panel, e.mul(c, kPanel)));
}

void PairExperts::add_product(V from, V valid, int64_t width, Vs args,
                              SplitKind job, V record) {
  if (job != SplitKind::None) args.push_back(record);
  auto run = [&](bool accumulate) {
    call_product(valid, width, accumulate, job, args);
  };
  if (fit.features == s.hidden) return run(false);
  e.if_(e.eq(from, e.i(0)), [&] { run(false); }, [&] { run(true); });
}

SplitSource PairExperts::weights(V first, V second, int64_t stride,
                                 int64_t length) {
  return {first,
          second ? second : first,
          e.i(second ? 2 : 1),
          e.i(stride),
          e.i(length),
          nullptr};
}

int64_t PairExperts::weights_bytes(const MoeSpec& s, const PairCut& c) {
  if (s.bf16) return 0;
  const int64_t longest = std::max(pair_padded(s.dim), pair_padded(c.features));
  return 2 * kPairStep * 2 * kSplitPlanes * longest;
}

void PairExperts::if_last(V from, int64_t width,
                          const std::function<void()>& f) {
  if (fit.features == s.hidden) return f();
  e.if_(e.eq(from, e.i(s.hidden - width)), f);
}

V PairExperts::take_operand(V record, V buffers, int64_t size, SplitKind kind,
                            const SplitSource& next, V more, V turns) {
  V now = split_job_operand(e, record, kind);
  SplitSource source = next;
  source.dst = e.select(e.eq(now, buffers), e.at(buffers, size, 1), buffers);
  e.if_(more, [&] { start_split_job(e, record, source, turns); });
  return now;
}

Fn PairExperts::product(int64_t width, bool accumulate, int64_t a_step,
                        SplitKind job, int64_t fetch, int vectors) {
  std::string name = "product" + std::to_string(width) + "_" +
                     std::to_string(vectors) + "_" + std::to_string(a_step) +
                     "_" + std::to_string(int(job)) + "_" +
                     std::to_string(fetch) + (accumulate ? "add" : "");
  const int64_t left = 2 * planes;  // bytes of an element
  if (!a_step) a_step = kPairStep;
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64};
  if (job != SplitKind::None) params.push_back(Ty::Ptr);
  if (fetch) params.push_back(Ty::Ptr);
  return e.define(name, params, [&](const Vs& a) {
    std::function<void(V, int)> beside;
    if (fetch)
      beside = [&](V k, int part) {
        if (part) return;
        V steps = e.lshr(a[3], e.i(5));
        V rows = e.udiv(e.add(steps, kPairStep - 1), steps);
        V from = e.mul(e.lshr(k, e.i(5)), rows);
        V end = e.min(e.add(from, rows), e.i(kPairStep));
        e.loop(from, end, 1, [&](V r) {
          V line = e.at(a.back(), e.mul(r, fetch), 1);
          for (int64_t c = 0; c < kPairStep * size; c += 64)
            e.prefetch(e.at(line, c, 1), 3, true);
        });
      };
    pair_product(e,
                 {.a = a[0],
                  .lda = left * width,
                  .b = a[1],
                  .ldb = 4 * kPanel,
                  .c = a[2],
                  .ldc = 4 * kPanel,
                  .a_step = left * a_step,
                  .vectors = vectors,
                  .beside = beside,
                  .planes = planes,
                  .job = job != SplitKind::None ? a[4] : nullptr,
                  .job_kind = job},
                 e.i(kPairStep), a[3], accumulate);
    for (int r = 0; vectors < 2 && !accumulate && r < kPairStep; ++r)
      e.vstore(DType::F32, e.zero(Ty::F32, 0),
               e.at(a[2], r * kPanel + kPanel / 2));
  });
}

void PairExperts::call_product(V valid, int64_t width, bool accumulate,
                               SplitKind job, const Vs& args) {
  auto run = [&](int vectors) {
    e.call(product(width, accumulate, 0, job, 0, vectors), args);
  };
  e.if_(e.gt(valid, e.i(kPanel / 2)), [&] { run(2); }, [&] { run(1); });
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
        return e.add(x, e.splat(e.load(dtype, e.at(a[1], r, size))));
      };
      Vs turned;  // of f32 first the lanes' lower halves of the rows
      for (int r = 0; r < kPairStep && s.bf16; r += 2)
        turned.push_back(e.pack_bf16_pair(row(r), row(r + 1)));
      for (int r = 0; r < kPairStep && !s.bf16; r += L) {
        Vs x;
        for (int k = 0; k < L; ++k) x.push_back(row(r + k));
        x = e.transpose(x);
        turned.insert(turned.end(), x.begin(), x.end());
      }
      if (s.bf16) turned = e.transpose(turned);
      auto store = [&](int lane) {
        V p = e.at(a[2], (first + lane) * stride, size);
        if (s.bf16)
          return e.store_raw(e.revector(turned[lane], Ty::I16), p, 2, mask);
        for (int r = 0; r < rows; r += L)
          e.vstore(DType::F32, turned[lane + r], e.at(p, r),
                   r + L > rows ? e.mask(e.i(rows - r)) : nullptr);
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
  // Rows of W_up and W_gate from feature f on.
  SplitSource up_source(const Weights& w, V f) {
    V row = e.mul(f, s.dim);
    return weights(e.at(w.up, row), gated ? e.at(w.gate, row) : nullptr, s.dim,
                   s.dim);
  }
  // Rows of W_down from channel c on, `width` features.
  SplitSource down_source(const Weights& w, V c, V from, int64_t width) {
    return weights(e.at(w.down, e.add(e.mul(c, s.hidden), from)), nullptr,
                   s.hidden, width);
  }
  V turns(const ExpertTask& t, int64_t k, int64_t products) {
    return e.mul(e.ceil_div(t.count, kPanel),
                 k / kPairStep * products * kSplitTurns);
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
        V more = e.lt(e.add(block, kPairStep), e.i(width));
        SplitSource next = up_source(w, e.add(f, kPairStep));
        next =
            select_source(e, more, next, down_source(w, e.i(0), from, width));
        up_rows = take_operand(part(at.job), part(at.up), weights_bytes(s, fit),
                               SplitKind::Rows, next, e.i1(true),
                               turns(t, dim, gated ? 2 : 1));
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
          Vs args{rows, x, sums, e.i(dim)};
          if (ahead) args.push_back(part(at.job));
          call_product(valid, dim, false,
                       ahead ? SplitKind::Rows : SplitKind::None, args);
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
    if (ahead) {
      SplitSource first = up_source(w, e.i(0));
      first.dst = part(at.up);
      start_split_job(e, part(at.job), first, e.i(1));
    }
    for_features([&](V from, int64_t width) {
      const int64_t k = pair_padded(width);
      up_and_gate(t, w, from, width);
      for_blocks(s.dim, [&](V c, V rows) {
        const int64_t stride = row_length(s.hidden);
        V down_rows;
        if (ahead) {
          V next_c = e.add(c, kPairStep), next_f = e.add(from, width);
          V here = e.lt(next_c, e.i(s.dim));
          SplitSource next =
              select_source(e, here, down_source(w, next_c, from, width),
                            up_source(w, next_f));
          down_rows = take_operand(
              part(at.job), part(at.up), weights_bytes(s, fit), SplitKind::Rows,
              next, e.or_(here, e.lt(next_f, e.i(s.hidden))), turns(t, k, 1));
        } else {
          V first_row = e.at(w.down, e.add(e.mul(c, stride), from), size);
          down_rows =
              weight_rows(first_row, rows, width, s.hidden, part(at.up));
        }
        for_panels(t.count, [&](V first, V valid, V number) {
          V a = e.at(part(at.a), e.mul(number, h_panel), 1);
          V y = sum_block(part(at.y), number, c);
          add_product(from, valid, planes > 1 ? k : hidden,
                      {down_rows, a, y, e.i(k)},
                      ahead ? SplitKind::Rows : SplitKind::None, part(at.job));
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
  const bool packed = s.bf16 && !weights_fit(s);
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
