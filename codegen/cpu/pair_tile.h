// Building blocks of the fused kernels on bf16. Every product sums over pairs:
// C[row][lane] += A[row][2k] B[k][lane].low + A[row][2k+1] B[k][lane].high. A
// is plain rows of bf16; B has for each pair a row of dwords, lanes side by
// side; C is f32 in memory. Tile registers compute it where there are any,
// else vdpbf16ps with A broadcast, else two multiplications on widened halves.
//
// In tile registers operands may also be f32, split in planes (split_f32.h):
// three for every kPairStep elements of the sum, one after the other, in A
// [row][step][plane][kPairStep] and in B [step][plane][pair][lane].
#pragma once
#include <functional>
#include <vector>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/split_job.h"
#include "codegen/cpu/target.h"

namespace moec {

// Rows of C and elements of the sum come in multiples of this, padded.
inline constexpr int64_t kPairStep = 32;
// Where there are no tile registers, a sum may end after any pair.
inline int64_t pair_sum_step(const Target& t) {
  return t.amx_bf16 ? kPairStep : 2;
}
inline int64_t pair_padded(int64_t n) {
  return (n + kPairStep - 1) / kPairStep * kPairStep;
}

// Leading dimensions in bytes. C is 2 * lanes() wide, or only half of it is
// computed. A's rows go on `a_step` bytes later for every kPairStep elements of
// the sum.
struct PairProduct {
  V a;
  int64_t lda;
  V b;
  int64_t ldb;
  V c;
  int64_t ldc;
  int64_t a_step = 2 * kPairStep;
  int vectors = 2;  // of C's row
  // Tile registers only. A is read once, so its lines need not replace B's in
  // the nearest cache; what vector instructions do beside the tiles, for every
  // kPairStep elements `k` of the sum, in beside_parts() parts.
  bool stream_a = false;
  std::function<void(V k, int part)> beside = {};
  // Of A's planes: how many, and bytes from one to the next.
  int planes = 1;
  int64_t a_plane = 2 * kPairStep;
  // With planes: whether A's lines are asked for ahead, as B's are, because
  // they come from beyond the second cache.
  bool fetch_a = false;
  // With planes: the record of what is split beside (split_job.h), or null.
  V job = nullptr;
  SplitKind job_kind = SplitKind::None;
};
// So many that tiles and vectors keep each other's queues filled.
inline int beside_parts(int planes) { return planes > 1 ? 4 : 1; }
// C (+)= A B over `k` elements for `rows` rows. Between begin_pairs and
// end_pairs, one of each a kernel.
void pair_product(Emit&, const PairProduct&, V rows, V k, V accumulate);
void begin_pairs(Emit&);
void end_pairs(Emit&);

// Rows in memory, bf16 or, for three planes, f32, `stride` elements apart. A
// row from `count` on repeats the last, a channel from `channels` on is zero.
struct PairRows {
  V base;
  int64_t stride;
  V count;
  int64_t channels;
  int planes = 1;
  // In planes only: elements to what is packed next, whose lines are asked for.
  int64_t ahead = 0;
};
// Each writes rows `from` .. `from + n` and pair_padded(channels) channels;
// `ld` in bytes. All but the second take n in multiples of 2 * lanes().
//   dst[row][channel], an operand A as it stands; this and the last with a
//   row's planes in turn, the others with a line's
void pack_plain(Emit&, const PairRows&, V from, V n, V dst, int64_t ld);
//   dst[channel / 2][row] dwords of two channels for lanes() rows, times -1 if
//   `negate`
void pack_columns(Emit&, const PairRows&, V from, V dst, int64_t ld,
                  bool negate = false);
// The same of lanes() rows given by their addresses.
void pack_columns(Emit&, const Vs& rows, int64_t channels, V dst, int64_t ld,
                  bool negate = false, int planes = 1);
//   dst[row / 2][channel] dwords of two rows
void pack_interleaved(Emit&, const PairRows&, V from, V n, V dst, int64_t ld);
//   dst[channel][row]
void pack_transposed(Emit&, const PairRows&, V from, V n, V dst, int64_t ld);

// The pairs of two rows that lie as bf16 in `even` and `odd`, by two unpacks:
// dword t of the half j stands for the lane pair_lane(t, j).
Vs unpack_pairs(Emit&, V even, V odd);
inline int pair_lane(int t, int half) { return t / 4 * 8 + t % 4 + 4 * half; }

// dst[row_of(lane)][c] = factor[lane] * src[c][lane] for lanes() lanes and the
// rows below `count`, in the dtype; ld in bytes, stride in elements.
void unpack_columns(Emit&, V src, int64_t ld, int64_t channels, V factor, V dst,
                    int64_t stride, V count, const std::vector<int>& row_of,
                    DType dtype = DType::BF16);

// 2^x for x < 127 with a relative error of 7.5e-5, far below bf16's; exactly 0
// for -inf.
V exp2_coarse(Emit&, V x);
// Powers of two as bf16 pairs, in integer arithmetic. An argument is
// fma(a, kPowerSteps * x, power_origin(b)) for the power a x + b < 0.99, with
// a precision of 1 / kPowerSteps. The relative error is 6.3e-3 at most, its
// root mean square 1.82e-3 and its mean 2e-5; of rounding alone 3.9e-3 and
// 1.66e-3. Exactly 0 for -inf, and for NaN. Only where target().vbmi, and for
// a x up to 1e8 or so; beyond, it falls to 0.
inline constexpr double kPowerSteps = 512;
V power_origin(Emit&, V b);
V power_pair(Emit&, V low, V high);
// The same in less instructions for powers from -127 to 0.99; `outside` gathers
// where there are others, whose results are worthless.
V power_pair_inside(Emit&, V low, V high, V* outside);
V power_outside(Emit&, V outside);  // mask of those
// Emit::pack_bf16_pair in fewer cycles; ties go away from zero, and of NaNs it
// keeps those that arithmetic makes.
V round_pair(Emit&, V low, V high);

}  // namespace moec
