#include "codegen/cpu/split_job.h"

#include <string>
#include <tuple>

#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/split_f32.h"

namespace moec {

namespace {

// Fields of the record, of 8 bytes. Items are blocks of 16 x 16 to turn, then
// chunks of 32 elements to split.
enum Field {
  kFirst,
  kSecond,
  kStride,
  kDst,
  kSteps,
  kNext,
  kEnd,
  kEach,
  kBlocks,
  kTurned,
  kPitch,
  kReciprocal  // 2^32 / steps, rounded up
};
constexpr int64_t kChunk = 2 * kSplitPlanes * kPairStep;  // bytes

struct Record {
  Emit& e;
  V base;
  V at(Field f) const { return e.at(base, int64_t(f), 8); }
  V get(Field f) const { return e.load(DType::I64, at(f)); }
  V pointer(Field f) const { return e.load_raw(Ty::Ptr, at(f), -1, 8); }
  void set(Field f, V v) const { e.store_raw(v, at(f), 8); }
};

// item(record, number)
Fn item(Emit& e, SplitKind kind) {
  const std::string name = "split_item" + std::to_string(int(kind));
  return e.define(name, {Ty::Ptr, Ty::I64}, [&](const Vs& a) {
    const int L = e.lanes();
    const Record r{e, a[0]};
    V steps = r.get(kSteps), stride = r.get(kStride), number = a[1];
    // n by steps, exact for both below 2^16: a division takes far longer
    auto row_and_step = [&](V n) {
      V row = e.lshr(e.mul(n, r.get(kReciprocal)), e.i(32));
      return std::pair(row, e.sub(n, e.mul(row, steps)));
    };
    // the number within the second matrix, after `each` items of the first
    auto locate = [&](V each) {
      V later = e.ge(number, each);
      return std::tuple(e.select(later, r.pointer(kSecond), r.pointer(kFirst)),
                        e.sub(number, e.select(later, each, e.i(0))), later);
    };
    auto place = [&](V row, V step) {
      V at = e.add(e.mul(row, r.get(kPitch)), e.mul(step, kChunk));
      return e.at(r.pointer(kDst), at, 1);
    };
    // 32 elements at p; the lines `ahead` of them are wanted later
    auto chunk = [&](V p, V to, int64_t ahead) {
      Vs x;
      for (int j = 0; j < 2; ++j) {
        if (ahead) e.prefetch(e.at(p, ahead + j * L), 2);
        x.push_back(e.vload(DType::F32, e.at(p, j * L)));
      }
      store_planes(e, split_row(e, x[0], x[1]), to, 2 * kPairStep, 64);
    };
    if (kind == SplitKind::Rows) {
      auto [from, n, later] = locate(e.mul(steps, kPairStep));
      auto [row, step] = row_and_step(n);
      V at = e.add(e.mul(row, stride), e.mul(step, kPairStep));
      V place_row = e.add(row, e.select(later, e.i(kPairStep), e.i(0)));
      return chunk(e.at(from, at), place(place_row, step), 512);
    }
    if (kind == SplitKind::Panels) {
      // the next 32 rows follow
      V row = e.and_(number, e.i(kPairStep - 1)), step = e.lshr(number, e.i(5));
      V at = e.add(e.mul(step, stride), e.mul(row, kPairStep));
      return chunk(e.at(r.pointer(kFirst), at), place(row, step),
                   kPairStep * kPairStep);
    }
    V blocks = r.get(kBlocks), length = e.mul(steps, kPairStep);
    auto turn = [&] {
      // [block of L rows of the source][L columns]
      auto [from, n, later] =
          locate(e.mul(steps, kPairStep * kPairStep / L / L));
      V k = e.mul(e.udiv(n, e.i(kPairStep / L)), L);
      V column = e.mul(e.urem(n, e.i(kPairStep / L)), L);
      V p = e.at(from, e.add(e.mul(k, stride), column));
      Vs x;
      for (int i = 0; i < L; ++i) {
        x.push_back(e.vload(DType::F32, e.at(p, e.mul(stride, i))));
        e.prefetch(e.at(p, e.mul(stride, L + i)), 2);
      }
      x = e.transpose(x);
      V row = e.add(column, e.select(later, e.i(kPairStep), e.i(0)));
      V to = e.at(r.pointer(kTurned), e.add(e.mul(row, length), k));
      for (int i = 0; i < L; ++i)
        e.store_raw(x[i], e.at(to, e.mul(length, i)), 64);
    };
    e.if_(e.lt(number, blocks), turn, [&] {
      V n = e.sub(number, blocks);
      auto [row, step] = row_and_step(n);
      chunk(e.at(r.pointer(kTurned), n, 4 * kPairStep), place(row, step), 0);
    });
  });
}

}  // namespace

void start_split_job(Emit& e, V record, const SplitSource& s, V turns) {
  const Record r{e, record};
  V steps = e.lshr(s.length, e.i(5));
  V chunks = e.mul(e.mul(steps, kPairStep), s.matrices);
  V blocks = e.i(0);
  if (s.turned) {
    const int64_t each = kPairStep * kPairStep / e.lanes() / e.lanes();
    blocks = e.mul(e.mul(steps, each), s.matrices);
    r.set(kTurned, s.turned);
  }
  r.set(kPitch, s.pitch ? s.pitch : e.mul(steps, kChunk));
  V end = e.add(blocks, chunks), whole = e.max(steps, e.i(1));
  r.set(kReciprocal, e.udiv(e.add(whole, e.i((int64_t(1) << 32) - 1)), whole));
  r.set(kFirst, s.first), r.set(kSecond, s.second), r.set(kStride, s.stride);
  r.set(kDst, s.dst), r.set(kSteps, steps), r.set(kBlocks, blocks);
  r.set(kNext, e.i(0)), r.set(kEnd, end);
  V some = e.max(turns, e.i(1));
  r.set(kEach, e.udiv(e.add(end, e.sub(some, e.i(1))), some));
}

SplitSource select_source(Emit& e, V first, const SplitSource& a,
                          const SplitSource& b) {
  auto pick = [&](V x, V y) { return x ? e.select(first, x, y) : nullptr; };
  return {pick(a.first, b.first),       pick(a.second, b.second),
          pick(a.matrices, b.matrices), pick(a.stride, b.stride),
          pick(a.length, b.length),     pick(a.dst, b.dst),
          pick(a.turned, b.turned),     pick(a.pitch, b.pitch)};
}

V split_job_operand(Emit& e, V record, SplitKind kind) {
  const Record r{e, record};
  e.loop(r.get(kNext), r.get(kEnd), 1,
         [&](V i) { e.call(item(e, kind), {record, i}); });
  r.set(kEnd, e.i(0));
  return r.pointer(kDst);
}

V split_job_begin(Emit& e, V record) { return Record{e, record}.get(kNext); }

void split_job_turn(Emit& e, V record, SplitKind kind, V first, V turn) {
  const Record r{e, record};
  V each = r.get(kEach);
  V from = e.add(first, e.mul(turn, each));
  e.loop(from, e.min(e.add(from, each), r.get(kEnd)), 1,
         [&](V i) { e.call(item(e, kind), {record, i}); });
}

void split_job_end(Emit& e, V record, V first, V turns) {
  const Record r{e, record};
  r.set(kNext, e.add(first, e.mul(turns, r.get(kEach))));
}

}  // namespace moec
