// Figures of the attention kernels on one thread, as shares of the peak that
// their operands have.
#pragma once
#include <string>
#include <vector>

#include "codegen/cpu/attention.h"

namespace moec {

class KernelLibrary;

struct AttentionRow {
  std::string name;  // "B4 H8 S512 D64 causal"
  // FLOP/s. A causal mask counts half of all pairs, a window the pairs in it;
  // the backward counts 2.5 times the forward.
  double forward = 0, backward = 0;
  double peak = 0;
  int64_t forward_tasks = 0, backward_tasks = 0;
};

std::string attention_name(const AttentionSpec&);
// The shapes `moec bench attention` shows.
std::vector<AttentionSpec> bench_attention_shapes(bool bf16);
// Spends about `seconds` on the shape.
AttentionRow bench_attention(KernelLibrary&, const AttentionSpec&,
                             double seconds);

}  // namespace moec
