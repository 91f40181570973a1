// How one product is cut into tasks and tiles. Internal to the matmul family.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "codegen/cpu/matmul.h"

namespace llvm {
class Function;
}

namespace moec {

struct MatmulPlan {
  // Register tile: heights in use, tallest first (each emitted once), and
  // vectors across.
  std::vector<int> heights;
  int vectors = 2;
  int64_t panel = 32;  // columns of a full panel: vectors * lanes
  // Blocks of one task. Rows of a block are split over tiles of heights[0]
  // and a remainder of the smaller ones.
  int64_t block_m = 0, block_n = 0, block_k = 0;
  int64_t blocks_m = 1, blocks_n = 1;
  bool split_k = false;   // several k blocks: partial sums in scratch
  bool direct_b = false;  // full panels are read in place, without packing
  int64_t batch = 1;      // product of the batch dimensions
  int64_t batch_per_task = 1;
  // Scratch layout in bytes.
  int64_t panel_bytes = 0, partial_offset = 0, scratch_bytes = 0;
};

MatmulPlan plan_matmul(const MatmulDesc&, const Target&);

// Writes the kernel's body.
void emit_matmul(Emit&, const MatmulDesc&, const MatmulPlan&);

// Packs columns of one panel of B: dst[kk][panel] from src (at the panel's
// first element), f32. `cols` (static) columns exist, the rest become 0.
// Returns the packing function (src, dst, kk).
llvm::Function* define_pack(Emit&, const MatmulDesc&, const MatmulPlan&,
                            int64_t cols);

}  // namespace moec
