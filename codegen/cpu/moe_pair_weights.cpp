// Gradients of the experts' weights on bf16 and split f32, by expert and block
// of channels.
#include <algorithm>

#include "codegen/cpu/moe_pair.h"

namespace moec {

namespace {

using B = MoeBuffer;

// Channels of a task: many where the features' rows are long, since each task
// reads those of all features.
int64_t most_channels(const MoeSpec& s) { return s.bf16 ? 128 : 256; }
// Most slots gathered at a time.
int64_t most_gathered(const MoeSpec& s) { return s.bf16 ? 1024 : 512; }

// Elements of a row of split features, an odd number of lines.
int64_t strip_length(const MoeSpec& s) { return most_gathered(s) + kPairStep; }

// Scratch, in bytes: gathered rows as pairs of slots, [block of 32 channels]
// [pair][channel]; sums of all features by such blocks; twice 32 split
// features.
struct WeightLayout {
  int64_t r = 0, sums, features, job, end;
  explicit WeightLayout(const MoeSpec& s)
      : sums(r + most_gathered(s) * most_channels(s) * 2 * pair_planes(s)),
        features(sums + pair_padded(s.hidden) / kPairStep * most_channels(s) /
                            kPairStep * PairExperts::kBlock),
        job(features + 2 * strip_bytes(s)),
        end(job + kSplitJobBytes) {}
  static int64_t strip_bytes(const MoeSpec& s) {
    return s.bf16 ? 0 : kPairStep * 2 * kSplitPlanes * strip_length(s);
  }
};

struct Weights : PairExperts {
  const int64_t gathered = most_gathered(s), channels = most_channels(s);
  const int64_t strip = strip_length(s);

  // Pairs of two f32 rows, the second of zeros unless it exists; `line` gives
  // the place of a block of 32 channels.
  void split_rows(V first, V second, V exists, int64_t width,
                  const std::function<V(V c)>& line) {
    const int L = e.lanes();
    auto block = [&](V c, int64_t n) {
      V at = line(c);
      for (int64_t k = 0; k < kPairStep; k += L) {
        V mask = n - k < L ? e.mask(e.i(n - k)) : nullptr;
        V low = e.vload(dtype, e.at(e.at(first, c), k), mask);
        V high = e.vload(dtype, e.at(e.at(second, c), k), mask);
        high = e.select(exists, high, e.f(0));
        store_pairs(in_planes(low), in_planes(high), e.at(at, k));
      }
    };
    const int64_t whole = width / kPairStep * kPairStep;
    e.loop(e.i(0), e.i(whole), kPairStep, [&](V c) { block(c, kPairStep); });
    if (whole < width) block(e.i(whole), width - whole);
  }

  // collect(src, perm, n, R): `width` channels of n rows, in pairs of rows, up
  // to a multiple of 32 rows.
  Fn collect(int64_t width) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64, Ty::Ptr};
    return e.define(
        "collect" + std::to_string(width), params, [&, width](const Vs& a) {
          const int L = e.lanes();
          std::vector<int> low, high;
          for (int k = 0; k < L; ++k)
            for (int from : {0, 2 * L})
              low.push_back(k + from), high.push_back(k + L + from);
          V last = e.add(a[2], -1);
          auto row = [&](V slot) {
            V choice = e.load(DType::I32, e.at(a[1], e.min(slot, last)));
            V token = e.udiv(e.zext(choice, Ty::I64), e.i(s.top_k));
            return e.at(a[0], e.mul(token, s.dim), size);
          };
          auto to = [&](V slot, V c) {
            V step = e.mul(e.and_(slot, e.i(-kPairStep)), planes);
            V line = e.add(step, e.and_(slot, e.i(kPairStep - 1)));
            V pair = e.at(a[3], e.mul(line, kPairStep / 2));
            return e.at(pair, e.mul(c, gathered * planes / 2));
          };
          e.loop(e.i(0), a[2], 2, [&](V slot) {
            V next = e.add(slot, 1), exists = e.splat(e.lt(next, a[2]), 2 * L);
            V first = row(slot), second = row(next);
            if (planes > 1)
              return split_rows(first, second, e.splat(e.lt(next, a[2])), width,
                                [&](V c) { return to(slot, c); });
            for (int64_t c = 0; c < width; c += kPairStep) {
              V mask = width - c < kPairStep ? e.mask(e.i(width - c), 2 * L)
                                             : nullptr;
              V x = e.load_raw(Ty::I16, e.at(first, c, 2), 2 * L, 2, mask);
              V y = e.load_raw(Ty::I16, e.at(second, c, 2), 2 * L, 2, mask);
              y = e.select(exists, y, e.zero(Ty::I16, 2 * L));
              e.store_raw(e.shuffle(x, y, low), to(slot, e.i(c)), 64);
              e.store_raw(e.shuffle(x, y, high), e.at(to(slot, e.i(c)), L), 64);
            }
          });
          V from = e.and_(e.add(a[2], 1), e.i(-2));
          V end = e.and_(e.add(a[2], kPairStep - 1), e.i(-kPairStep));
          e.loop(from, end, 1, [&](V slot) {
            V odd = e.mul(e.and_(slot, e.i(1)), L);
            for (int64_t c = 0; c < width; c += kPairStep)
              for (int i = 0; i < planes; ++i) {
                V line = e.at(to(e.and_(slot, e.i(-2)), e.i(c)), odd);
                e.store_raw(e.zero(Ty::I32, 0),
                            e.at(line, i * kPairStep * kPairStep / 2), 64);
              }
          });
        });
  }

  // rows(C, dst, n): dst[row][channel] = C for n rows and `width` channels.
  Fn rows(int width) {
    std::vector<Ty> params = {Ty::Ptr, Ty::Ptr, Ty::I64};
    return e.define(
        "rows" + std::to_string(width), params, [&, width](const Vs& a) {
          const int L = e.lanes();
          e.loop(e.i(0), a[2], 1, [&](V r) {
            V from = e.at(a[0], e.mul(r, kPanel)),
              to = e.at(a[1], e.mul(r, s.dim), size);
            for (int c = 0; c < width; c += L)
              e.vstore(dtype, e.vload(DType::F32, e.at(from, c)),
                       e.at(to, c, size),
                       width - c < L ? e.mask(e.i(width - c)) : nullptr);
          });
        });
  }

  // split(G, rows, n, dst): f32 rows of 32 features, [panel][feature][slot],
  // as a left operand of n slots, whose rows are `strip` elements apart.
  Fn split_strip(int64_t feature_rows) {
    std::vector<Ty> params = {Ty::Ptr, Ty::I64, Ty::I64, Ty::Ptr};
    return e.define(
        "split" + std::to_string(feature_rows), params, [&](const Vs& a) {
          e.loop(e.i(0), a[2], kPanel, [&](V slot) {
            // the next features' rows follow
            PairRows rows{e.at(a[0], e.mul(slot, feature_rows)),
                          kPanel,
                          a[1],
                          kPanel,
                          planes,
                          kPairStep * kPanel};
            pack_plain(e, rows, e.i(0), e.i(kPairStep),
                       e.at(a[3], slot, 2 * planes), 2 * planes * strip);
          });
        });
  }

  // dBias[feature] = sum of the feature's row over all panels, whose missing
  // slots are zero.
  void row_sums(V g, int64_t feature_rows, V n, V to) {
    e.loop(e.i(0), e.i(s.hidden), 1, [&](V f) {
      V sum =
          e.loop(e.i(0), n, kPanel, {e.zero(Ty::F32, 0)}, [&](V slot, Vs x) {
            V row = e.add(e.mul(slot, feature_rows), e.mul(f, kPanel));
            for (int j = 0; j < 2; ++j) {
              V at = e.at(e.at(g, row, size), j * e.lanes(), size);
              x[0] = e.add(x[0], e.vload(dtype, at));
            }
            return x;
          })[0];
      e.store(dtype, e.hsum(sum), e.at(to, f, size));
    });
  }

  // dBias[channel] = sum of w dO over the slots.
  void column_sums(const ExpertTask& t, V column, V width, V to) {
    e.loop(e.i(0), width, e.lanes(), [&](V c) {
      V mask = e.mask(e.sub(width, c)), at = e.add(column, c);
      V sum = e.loop(e.i(0), t.count, 1, {e.zero(Ty::F32, 0)}, [&](V i, Vs x) {
        V slot = e.add(t.slot, i);
        V choice = e.load(DType::I32, e.at(buffer(B::Perm), slot));
        V token = e.udiv(e.zext(choice, Ty::I64), e.i(s.top_k));
        V w = e.load(DType::F32, e.at(buffer(B::SlotWeights), slot));
        V dy = e.vload(dtype, element(B::Dy, e.add(e.mul(token, s.dim), at)),
                       mask);
        return Vs{e.fma(e.splat(w), dy, x[0])};
      })[0];
      e.vstore(dtype, sum, e.at(to, c, size), mask);
    });
  }

  void task(int which, V expert, V column) {
    const ExpertWeight p = expert_weight(s, which);
    const bool down = which == 0;
    const WeightLayout at(s);
    ExpertTask t = whole_expert(e, cut(), buffer(B::Offsets), expert);
    V g = row(p.product, e.add(e.mul(t.panel, p.feature_rows), p.first_row));
    V weight = element(p.weight, e.mul(expert, s.hidden * s.dim));
    V left = e.min(e.sub(e.i(s.dim), column), e.i(channels));
    if (s.bias && down)
      column_sums(t, column, left,
                  element(p.bias, e.add(e.mul(expert, s.dim), column)));
    if (s.bias && !down)
      e.if_(e.eq(column, e.i(0)), [&] {
        row_sums(g, p.feature_rows, t.count,
                 element(p.bias, e.mul(expert, s.hidden)));
      });
    // one chunk for an expert without slots, whose gradient is zero
    V chunks = e.max(e.ceil_div(t.count, gathered), e.i(1));
    begin_pairs(e);
    e.loop(e.i(0), chunks, 1, [&](V chunk) {
      V from = e.mul(chunk, gathered);
      V n = e.min(e.sub(t.count, from), e.i(gathered));
      const int64_t step = pair_sum_step(e.target());
      V k = e.and_(e.add(n, step - 1), e.i(-step));
      V is_last = e.eq(e.add(chunk, 1), chunks);
      V perm = e.at(buffer(B::Perm), e.add(t.slot, from));
      by_width(
          [&](int64_t width) {
            e.call(collect(width),
                   {element(p.source, column), perm, n, part(at.r)});
          },
          left);
      auto features = [&](V f) {
        return e.at(g, e.add(e.mul(from, p.feature_rows), e.mul(f, kPanel)),
                    size);
      };
      auto source = [&](V f) {
        V first = features(f);
        return SplitSource{.first = first,
                           .second = first,
                           .matrices = e.i(1),
                           .stride = e.i(p.feature_rows * kPanel),
                           .length = k,
                           .dst = part(at.features),
                           .pitch = e.i(2 * planes * strip)};
      };
      const SplitKind job = ahead ? SplitKind::Panels : SplitKind::None;
      if (ahead) start_split_job(e, part(at.job), job, source(e.i(0)), e.i(1));
      for_blocks(s.hidden, [&](V f, V rows_here) {
        V a = features(f);
        if (ahead) {
          V next = e.add(f, kPairStep);
          V turns = e.mul(e.ceil_div(left, kPairStep),
                          e.mul(e.lshr(k, e.i(5)), kSplitTurns));
          a = take_operand(part(at.job), part(at.features),
                           WeightLayout::strip_bytes(s), job, source(next),
                           e.lt(next, e.i(s.hidden)), turns);
        } else if (planes > 1) {
          e.call(split_strip(p.feature_rows),
                 {a, rows_here, k, part(at.features)});
          a = part(at.features);
        }
        e.loop(e.i(0), left, kPairStep, [&](V c) {
          V number = e.add(e.mul(e.lshr(f, e.i(5)), channels / kPairStep),
                           e.lshr(c, e.i(5)));
          // sums that are done at once stay where they are
          V kept = e.select(e.eq(chunks, e.i(1)), e.i(0), number);
          V sums = e.at(part(at.sums), e.mul(kept, kBlock), 1);
          V r = e.at(part(at.r), e.mul(c, gathered * 2 * planes), 1);
          Vs args{a, r, sums, k, e.gt(chunk, e.i(0))};
          if (ahead) args.push_back(part(at.job));
          V channel = e.add(column, c);
          V index = down ? e.add(e.mul(channel, s.hidden), f)
                         : e.add(e.mul(f, s.dim), channel);
          V to = e.at(weight, index, size);
          if (planes > 1) args.push_back(to);
          e.call(planes > 1
                     ? product(strip, 0, job, 4 * (down ? s.hidden : s.dim))
                     : product(kPanel, p.feature_rows * kPanel),
                 args);
          e.if_(is_last, [&] {
            if (down)
              return call_flip(
                  s.hidden, f, false, s.hidden,
                  {sums, sums, to, e.min(e.sub(left, c), e.i(kPairStep))});
            store_rows(channel, {sums, to, rows_here});
          });
        });
      });
    });
    end_pairs(e);
  }

  // f(width) with the static number of channels of this task.
  void by_width(const std::function<void(int64_t)>& f, V left) {
    const int64_t tail = s.dim % channels;
    if (!tail) return f(channels);
    if (s.dim < channels) return f(tail);
    e.if_(e.eq(left, e.i(channels)), [&] { f(channels); }, [&] { f(tail); });
  }

  // Calls rows for the channels from `channel` on.
  void store_rows(V channel, const Vs& args) {
    auto run = [&](int width) { e.call(rows(width), args); };
    const int64_t whole = s.dim / kPairStep * kPairStep;
    if (whole == s.dim) return run(kPairStep);
    if (!whole) return run(int(s.dim));
    e.if_(
        e.lt(channel, e.i(whole)), [&] { run(kPairStep); },
        [&] { run(int(s.dim - whole)); });
  }

  void kernel() {
    const int64_t blocks = (s.dim + channels - 1) / channels;
    V which = e.rem(e.task(), e.i(expert_weights(s)));
    V rest = e.div(e.task(), e.i(expert_weights(s)));
    V column = e.mul(e.rem(rest, e.i(blocks)), channels);
    V expert = e.div(rest, e.i(blocks));
    for (int i = 0; i < expert_weights(s); ++i)
      e.if_(e.eq(which, e.i(i)), [&] { task(i, expert, column); });
  }
};

}  // namespace

MoeLaunch moe_pair_weights(const MoeSpec& s) {
  const double product = 2.0 * double(s.slots()) * double(s.dim);
  const double rows = double(s.hidden_rows() + s.hidden);
  MoeLaunch l;
  l.buffers = {B::X,         B::Dy,          B::Offsets,  B::Perm,  B::DHidden,
               B::Activated, B::SlotWeights, B::DUp,      B::DGate, B::DDown,
               B::DBiasUp,   B::DBiasGate,   B::DBiasDown};
  l.spec.key = moe_key("moe weights_grad", s);
  l.spec.tasks = s.experts *
                 ((s.dim + most_channels(s) - 1) / most_channels(s)) *
                 expert_weights(s);
  l.spec.scratch_bytes = WeightLayout(s).end;
  l.spec.flops = product * rows;
  l.spec.bytes = double(s.bf16 ? 2 : 4) *
                 (double(s.experts * s.dim) * rows +
                  double(s.slots()) * (rows + 2.0 * double(s.dim)));
  l.spec.emit = [s, list = l.buffers](Emit& e) {
    Weights{{e, s, {e, list}, pair_cut(s, true)}}.kernel();
  };
  return l;
}

}  // namespace moec
