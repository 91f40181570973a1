// Left operands that are split (split_f32.h) beside products in tile registers:
// vector instructions have next to nothing to do there, and up to a dozen
// chunks of 32 elements for every 24 tile products cost no time of their own.
// A job is a record in memory; products that name it (PairProduct::job) each
// do some of it.
#pragma once
#include "codegen/cpu/emit.h"

namespace moec {

inline constexpr int64_t kSplitJobBytes = 128;
// Times that a product in planes looks at its job, for 32 elements of the sum.
inline constexpr int64_t kSplitTurns = 6;

// 32 rows of `length` f32, a multiple of 32, or twice 32 of two matrices:
// source[row][k], or if `turned` source[k][row]. dst[row] has the row's planes
// as an operand A, 6 * length bytes; the second matrix's rows follow.
struct SplitSource {
  V first, second;  // the same if there is one
  V matrices;       // 1 or 2
  V stride;         // elements between the source's rows
  V length;
  V dst;
  // Room for the turned f32, [rows][length].
  V turned = nullptr;
};

// One of two, element by element.
SplitSource select_source(Emit&, V first, const SplitSource&,
                          const SplitSource& otherwise);
// Sets the record up, to be done in `turns` turns of products.
void start_split_job(Emit&, V record, const SplitSource&, V turns);
// Does what the products have left over and returns the operand.
V split_job_operand(Emit&, V record, bool turned);
// Turn number `turn` of a product; `first` as the record had it before.
void split_job_turn(Emit&, V record, bool turned, V first, V turn);
// Of a product with so many turns, before and after it.
V split_job_begin(Emit&, V record);
void split_job_end(Emit&, V record, V first, V turns);

}  // namespace moec
