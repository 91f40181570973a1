#include "codegen/cpu/moe_pair.h"

#include <algorithm>

namespace moec {

namespace {

using B = MoeBuffer;

int64_t pair_panels(const MoeSpec& s) {
  return s.slots() / PairExperts::kPanel + s.experts;
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
  if (none || !s.bf16 || pair_weights_fit(s)) return 0;
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
    e.loop(e.i(0), e.i(kPanel), L, [&](V first) {
      Vs rows;
      for (int r = 0; r < L; ++r) {
        V slot = e.min(e.add(first, r), last);
        V choice = e.load(DType::I32, e.at(a[1], slot));
        V token = e.udiv(e.zext(choice, Ty::I64), e.i(s.top_k));
        rows.push_back(e.at(a[0], e.mul(token, s.dim), size));
      }
      pack_columns(e, rows, s.dim, e.at(a[3], first), 4 * kPanel, false,
                   planes);
    });
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

void PairExperts::add_product(V from, V valid, int64_t width, SplitKind job,
                              V record, const Vs& args) {
  V adds = fit.features == s.hidden ? e.i1(false) : e.gt(from, e.i(0));
  call_product(valid, width, adds, job, record, args);
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

V PairExperts::split_turns(const ExpertTask& t, int64_t k, int64_t products) {
  return e.mul(e.ceil_div(t.count, kPanel),
               k / kPairStep * products * kSplitTurns);
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
  e.if_(more, [&] { start_split_job(e, record, kind, source, turns); });
  return now;
}

void PairExperts::start_weights(const WeightBlocks& w) {
  SplitSource first = w.features(e.i(0));
  first.dst = w.buffers;
  start_split_job(e, w.record, w.kind, first, e.i(1));
}

V PairExperts::take_features(const WeightBlocks& w, V from, int64_t width,
                             V block, V turns) {
  V next = e.add(block, kPairStep);
  SplitSource source =
      select_source(e, e.lt(next, e.i(width)), w.features(e.add(from, next)),
                    w.channels(e.i(0), from, width));
  return take_operand(w.record, w.buffers, weights_bytes(s, fit), w.kind,
                      source, e.i1(true), turns);
}

V PairExperts::take_channels(const WeightBlocks& w, V from, int64_t width, V c,
                             V turns) {
  V next = e.add(c, kPairStep), end = e.add(from, width);
  V here = e.lt(next, e.i(s.dim)), more = e.lt(end, e.i(s.hidden));
  SplitSource source =
      select_source(e, here, w.channels(next, from, width), w.features(end));
  return take_operand(w.record, w.buffers, weights_bytes(s, fit), w.kind,
                      source, e.or_(here, more), turns);
}

Fn PairExperts::product(int64_t width, int64_t a_step, SplitKind job,
                        int64_t fetch, int vectors) {
  std::string name = "product" + std::to_string(width) + "_" +
                     std::to_string(vectors) + "_" + std::to_string(a_step) +
                     "_" + std::to_string(int(job)) + "_" +
                     std::to_string(fetch);
  const int64_t left = 2 * planes;  // bytes of an element
  if (!a_step) a_step = kPairStep;
  std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::Ptr, Ty::I64, Ty::I1};
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
                  .job = job != SplitKind::None ? a[5] : nullptr,
                  .job_kind = job},
                 e.i(kPairStep), a[3], a[4]);
    if (vectors == 2) return;
    e.if_(e.not_(a[4]), [&] {
      for (int r = 0; r < kPairStep; ++r)
        e.vstore(DType::F32, e.zero(Ty::F32, 0),
                 e.at(a[2], r * kPanel + kPanel / 2));
    });
  });
}

void PairExperts::call_product(V valid, int64_t width, V accumulate,
                               SplitKind job, V record, Vs args) {
  args.push_back(accumulate);
  if (job != SplitKind::None) args.push_back(record);
  auto run = [&](int vectors) {
    e.call(product(width, 0, job, 0, vectors), args);
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
    e.loop(e.i(0), e.min(a[3], e.i(kPanel)), L, [&](V first) {
      V from = e.at(a[0], first), to = e.at(a[2], e.mul(first, stride), size);
      auto row = [&](int r) {
        if (r >= rows) return e.zero(Ty::F32, 0);
        V x = e.vload(DType::F32, e.at(from, r * kPanel));
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
        V p = e.at(to, lane * stride, size);
        if (s.bf16)
          return e.store_raw(e.revector(turned[lane], Ty::I16), p, 2, mask);
        for (int r = 0; r < rows; r += L)
          e.vstore(DType::F32, turned[lane + r], e.at(p, r),
                   r + L > rows ? e.mask(e.i(rows - r)) : nullptr);
      };
      V left = e.sub(a[3], first);
      e.if_(
          e.ge(left, e.i(L)),
          [&] {
            for (int lane = 0; lane < L; ++lane) store(lane);
          },
          [&] {
            for (int lane = 0; lane < L; ++lane)
              e.if_(e.lt(e.i(lane), left), [&] { store(lane); });
          });
    });
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

}  // namespace moec
