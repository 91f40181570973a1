// Left operands that are split (split_f32.h) beside products in tile registers:
// vector instructions have next to nothing to do there, and up to a dozen
// chunks of 32 elements for every 24 tile products cost no time of their own.
// A job is a record in memory; products that name it (PairProduct::job) each
// do some of it.
#pragma once
#include "codegen/cpu/emit.h"

namespace moec {

inline constexpr int64_t kSplitJobBytes = 192;
// Times that a product in planes looks at its job, for 32 elements of the sum.
inline constexpr int64_t kSplitTurns = 3;

// How 32 rows of f32 lie that become a left operand.
enum class SplitKind : uint8_t {
  None,    // no job
  Rows,    // [row][k], or twice 32 rows of two matrices
  Turned,  // [k][row], of one or two matrices
  Panels,  // [block of 32 along k][row][32]
};

// `length`, a multiple of 32, is that of the sum. dst[row] has the row's planes
// as an operand A; a second matrix's rows follow the first one's.
struct SplitSource {
  V first, second;  // the same if there is one
  V matrices;       // 1 or 2
  V stride;         // elements between rows, of Panels between blocks
  V length;
  V dst;
  // Of Turned: room for f32 [row][k].
  V turned = nullptr;
  // Of Panels: bytes between rows of dst, otherwise 6 * length.
  V pitch = nullptr;
};

// One of two, element by element.
SplitSource select_source(Emit&, V first, const SplitSource&,
                          const SplitSource& otherwise);
// Sets the record up, to be done in `turns` turns of products.
void start_split_job(Emit&, V record, SplitKind, const SplitSource&, V turns);
// Does what the products have left over and returns the operand.
V split_job_operand(Emit&, V record, SplitKind);
// A turn of a product.
void split_job_turn(Emit&, V record, SplitKind);

}  // namespace moec
