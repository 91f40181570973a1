// How one product is cut into tasks and tiles. Internal to the matmul family.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "codegen/cpu/matmul.h"

namespace llvm {
class Function;
class Value;
}  // namespace llvm

namespace moec {

inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// A tile of A packed for tile registers, 32 rows by 32 elements, in 4-byte
// units.
inline constexpr int64_t kTileUnits = 32 * 16;

// The reduction advances in steps of 4 bytes an operand: one f32, or with
// desc.bf16 one pair of bf16 (the last half is 0 if k is odd).
struct MatmulPlan {
  // Register tile: heights in use, tallest first (each emitted once), and
  // vectors across.
  std::vector<int> heights;
  int vectors = 2;
  int64_t panel = 32;  // columns of a full panel: vectors * lanes
  // Blocks of one task; block_k in elements. Rows of a block are split over
  // tiles of heights[0] and a remainder of the smaller ones.
  int64_t block_m = 0, block_n = 0, block_k = 0;
  int64_t blocks_m = 1, blocks_n = 1;
  bool split_k = false;   // several k blocks: partial sums in scratch
  bool direct_b = false;  // full panels are read in place, without packing
  // Tile registers: blocks of 32 x 32 by pair_tile.h. A is read in place or
  // packed as Tiles of 32 rows by 32 elements, padded with zeros along k, as
  // B's panels are.
  bool pairs = false;
  // With `pairs`: of f32 operands three, one after the other for every 32
  // elements of k (split_f32.h).
  int planes = 1;
  // How A is read: in place, or packed per task as [tile][step][heights[0]]
  // (Tiles, its layout follows the broadcasts) or as [block_m][step] (Rows,
  // for f32 operands of a bf16 product whose rows are contiguous).
  enum class A : uint8_t { Direct, Tiles, Rows };
  A a = A::Direct;
  // 4-byte units between tiles or rows of packed A; with `pairs`, between
  // strips of 32 rows.
  int64_t a_pitch = 0;
  // B packed by a launch before, as [panel][k][columns], whole in the workspace
  // buffer. Tasks then go down the rows first, with their columns of B in L2.
  bool workspace_b = false;
  int64_t b_pitch = 0;  // 4-byte units between its panels
  // With `pairs`: A too, its tiles this many bytes into the workspace.
  bool workspace_a = false;
  int64_t workspace_a_offset = 0;
  // Lines of the next panel in the workspace that a tile asks for.
  int64_t lines_ahead = 0;
  // With `pairs`: whether a tile's sums are passed on beside the next tile, for
  // which short sums leave no time, and whether the outputs' lines are far.
  bool overlaps = false;
  bool fetch_outputs = false;
  int workspace = -1;  // number of the buffer
  int64_t workspace_bytes = 0;
  int64_t batch = 1;  // product of the batch dimensions
  int64_t batch_per_task = 1;
  // Scratch layout in bytes: one panel of B, packed A, partial sums.
  // With `pairs` two tiles of sums come before the partial sums.
  int64_t a_offset = 0, turn_offset = 0, partial_offset = 0, scratch_bytes = 0;
};

// workspace: the number of a buffer for packed operands, -1 for none.
MatmulPlan plan_matmul(const MatmulDesc&, const Target&, int workspace);

// Writes the kernel's body.
void emit_matmul(Emit&, const MatmulDesc&, const MatmulPlan&);

// The launch that packs into the workspace, and its number of tasks.
int64_t matmul_pack_tasks(const MatmulDesc&, const MatmulPlan&);
void emit_matmul_pack(Emit&, const MatmulDesc&, const MatmulPlan&);

// The launch that adds up `parts` products of parts of the reduction, which lie
// as [part][m][n] in f32 in buffer `workspace`: C = scale * sum, in order. A
// task has kSumRows rows.
inline constexpr int64_t kSumRows = 16;
void emit_matmul_sum(Emit&, const MatmulDesc&, int workspace, int64_t parts);

// Packs one panel of B: [step][panel] from src (at the panel's first
// element). `cols` (static) columns exist; what the rest holds is never
// stored. Returns the function (src, dst, kk).
llvm::Function* define_pack_b(Emit&, const MatmulDesc&, const MatmulPlan&,
                              int64_t cols);

// Packs a block of A as the plan says. The function (src, dst, kk, rows).
llvm::Function* define_pack_a(Emit&, const MatmulDesc&, const MatmulPlan&);
// The same for p.pairs, to strips of tiles.
llvm::Function* define_pack_pairs(Emit&, const MatmulDesc&, const MatmulPlan&);

}  // namespace moec
