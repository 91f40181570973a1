#include "codegen/cpu/split_job.h"

#include <string>

#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/split_f32.h"

namespace moec {

namespace {

// Fields of the record, of 8 bytes. What is left of the work is counted in
// chunks of 32 elements to split, in runs side by side, and before them blocks
// of 16 x 16 to turn.
enum Field {
  kOperand,  // where the planes begin
  kLeft,     // chunks
  kCredit,   // of the turns so far, less what was done for it
  kRate,     // of a turn
  // The next chunk, and how many are left in its run.
  kSource,
  kDst,
  kInRun,
  kRuns,
  // After every chunk and every run; the last `kPairStep` of twice as many runs
  // are the second matrix's.
  kRun,
  kSourceJump,
  kDstStep,
  kDstJump,
  kSwitch,
  kSecond,
  // Blocks: the next one, their number, the matrices, elements between their
  // rows and between those of what they become.
  kBlock,
  kBlocks,
  kFirstMatrix,
  kSecondMatrix,
  kStride,
  kLength,
  kTurned,
  kFields
};
static_assert(8 * kFields <= kSplitJobBytes);
constexpr int64_t kChunk = 2 * kSplitPlanes * kPairStep;  // bytes
// Credit is in chunks, with so many bits after the point; a block takes as long
// as kBlockChunks.
constexpr int kCreditBits = 16, kBlockBits = 2;
constexpr int64_t kBlockChunks = 1 << kBlockBits;

struct Record {
  Emit& e;
  V base;
  V at(Field f) const { return e.at(base, int64_t(f), 8); }
  V get(Field f) const { return e.load(DType::I64, at(f)); }
  V pointer(Field f) const { return e.load_raw(Ty::Ptr, at(f), -1, 8); }
  void set(Field f, V v) const { e.store_raw(v, at(f), 8); }
};

// Of kPairStep rows and as many elements.
int64_t blocks_of_step(const Emit& e) {
  return kPairStep * kPairStep / e.lanes() / e.lanes();
}

// Turns block `number`: [block of lanes() rows of the source][lanes() columns].
void turn_block(Emit& e, const Record& r, V number) {
  const int L = e.lanes();
  V stride = r.get(kStride), length = r.get(kLength);
  V each = e.mul(e.lshr(length, e.i(5)), blocks_of_step(e));
  V later = e.ge(number, each);
  V n = e.sub(number, e.select(later, each, e.i(0)));
  V k = e.mul(e.udiv(n, e.i(kPairStep / L)), L);
  V column = e.mul(e.urem(n, e.i(kPairStep / L)), L);
  V p = e.select(later, r.pointer(kSecondMatrix), r.pointer(kFirstMatrix));
  p = e.at(p, e.add(e.mul(k, stride), column));
  Vs x;
  for (int i = 0; i < L; ++i) {
    x.push_back(e.vload(DType::F32, p));
    e.prefetch(e.at(p, kPairStep), 2);  // of the operand after this one
    p = e.at(p, stride);
  }
  x = e.transpose(x);
  V row = e.add(column, e.select(later, e.i(kPairStep), e.i(0)));
  V to = e.at(r.pointer(kTurned), e.add(e.mul(row, length), k));
  for (int i = 0; i < L; ++i) {
    e.store_raw(x[i], to, 64);
    to = e.at(to, length);
  }
}

// Splits the next `n` chunks.
void split_chunks(Emit& e, const Record& r, SplitKind kind, V n) {
  const int L = e.lanes();
  V run = r.get(kRun), jump = r.get(kSourceJump);
  V dst_step = r.get(kDstStep), dst_jump = r.get(kDstJump);
  V at_second = r.get(kSwitch), second = r.pointer(kSecond);
  // elements to what is wanted later
  const int ahead = kind == SplitKind::Rows     ? 512
                    : kind == SplitKind::Panels ? kPairStep * kPairStep
                                                : 0;
  Vs c{r.pointer(kSource), r.pointer(kDst), r.get(kInRun), r.get(kRuns)};
  c = e.loop(e.i(0), n, 1, c, [&](V, Vs c) {
    V p = c[0], to = c[1];
    Vs x;
    for (int j = 0; j < 2; ++j) {
      if (ahead) e.prefetch(e.at(p, ahead + j * L), 2);
      x.push_back(e.vload(DType::F32, e.at(p, j * L)));
    }
    store_planes(e, split_row(e, x[0], x[1]), to, 2 * kPairStep, 64);
    V in_run = e.add(c[2], -1), ends = e.eq(in_run, e.i(0));
    V runs = e.select(ends, e.add(c[3], -1), c[3]);
    V next = e.at(p, e.select(ends, jump, e.i(kPairStep)));
    next = e.select(e.and_(ends, e.eq(runs, at_second)), second, next);
    return Vs{next, e.at(to, e.select(ends, dst_jump, dst_step), 1),
              e.select(ends, run, in_run), runs};
  });
  r.set(kSource, c[0]), r.set(kDst, c[1]);
  r.set(kInRun, c[2]), r.set(kRuns, c[3]);
}

// turn(record): what is due.
Fn turn(Emit& e, SplitKind kind) {
  const std::string name = "split_turn" + std::to_string(int(kind));
  return e.define(name, {Ty::Ptr}, [&](const Vs& a) {
    const Record r{e, a[0]};
    V credit = e.add(r.get(kCredit), r.get(kRate));
    V due = e.max(e.ashr(credit, e.i(kCreditBits)), e.i(0));
    V left = r.get(kLeft), done = e.i(0);
    if (kind == SplitKind::Turned) {
      V first = r.get(kBlock), blocks = r.get(kBlocks);
      V n = e.lshr(e.add(due, kBlockChunks - 1), e.i(kBlockBits));
      V end = e.min(e.add(first, n), blocks);
      e.loop(first, end, 1, [&](V i) { turn_block(e, r, i); });
      r.set(kBlock, end);
      done = e.shl(e.sub(end, first), e.i(kBlockBits));
      due = e.max(e.sub(due, done), e.i(0));
      left = e.select(e.lt(end, blocks), e.i(0), left);
    }
    V n = e.min(due, left);
    done = e.add(done, n);
    r.set(kCredit, e.sub(credit, e.shl(done, e.i(kCreditBits))));
    e.if_(e.gt(n, e.i(0)), [&] {
      r.set(kLeft, e.sub(left, n));
      split_chunks(e, r, kind, n);
    });
  });
}

}  // namespace

void start_split_job(Emit& e, V record, SplitKind kind, const SplitSource& s,
                     V turns) {
  const Record r{e, record};
  V steps = e.lshr(s.length, e.i(5)), rows = e.mul(s.matrices, kPairStep);
  V chunks = e.mul(steps, rows), units = chunks;
  V source = s.first, run = steps, runs = rows, stride = s.stride;
  V dst_step = e.i(kChunk), dst_jump = dst_step;
  V at_second = e.select(e.gt(s.matrices, e.i(1)), e.i(kPairStep), e.i(-1));
  if (kind == SplitKind::Panels) {
    run = e.i(kPairStep), runs = steps;
    dst_step = s.pitch;
    dst_jump = e.sub(e.i(kChunk), e.mul(s.pitch, kPairStep - 1));
  }
  if (kind == SplitKind::Turned) {
    V blocks = e.mul(e.mul(steps, blocks_of_step(e)), s.matrices);
    r.set(kBlock, e.i(0)), r.set(kBlocks, blocks);
    r.set(kFirstMatrix, s.first), r.set(kSecondMatrix, s.second);
    r.set(kStride, s.stride), r.set(kLength, s.length);
    r.set(kTurned, s.turned);
    source = s.turned, stride = s.length, at_second = e.i(-1);
    units = e.add(units, e.shl(blocks, e.i(kBlockBits)));
  }
  r.set(kOperand, s.dst), r.set(kLeft, chunks), r.set(kCredit, e.i(0));
  r.set(kRate,
        e.add(e.udiv(e.shl(units, e.i(kCreditBits)), e.max(turns, e.i(1))), 1));
  r.set(kSource, source), r.set(kDst, s.dst);
  r.set(kInRun, run), r.set(kRuns, runs), r.set(kRun, run);
  V before = e.mul(e.add(run, -1), kPairStep);
  r.set(kSourceJump, e.sub(stride, before));
  r.set(kDstStep, dst_step), r.set(kDstJump, dst_jump);
  r.set(kSwitch, at_second), r.set(kSecond, s.second);
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
  constexpr int64_t kAll = int64_t(1) << 40;
  r.set(kCredit, e.i(kAll << kCreditBits));
  e.call(turn(e, kind), {record});
  return r.pointer(kOperand);
}

void split_job_turn(Emit& e, V record, SplitKind kind) {
  e.call(turn(e, kind), {record});
}

}  // namespace moec
