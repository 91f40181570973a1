// Launches that need not wait for each other: the projections of queries, keys
// and values, say. Joined, their tasks are shared out at once, so that threads
// meet less often; where a launch lasts microseconds, as in decoding, that
// counts.
#pragma once
#include <span>
#include <vector>

#include "passes/memory_plan.h"
#include "runtime/abi.h"

namespace moec {

// What one launch touches.
struct LaunchMemory {
  std::vector<BufferSlot> reads, writes;
};

// Sets Launch::joins; one entry of `memory` for each launch.
void join_launches(Program&, std::span<const LaunchMemory> memory);

}  // namespace moec
