// Figures of the attention kernels on one thread, as shares of the peak that
// their operands have.
#pragma once
#include <string>
#include <vector>

#include "codegen/cpu/attention.h"
#include "codegen/cpu/kernel_bench.h"

namespace moec {

std::string attention_name(const AttentionSpec&);
// The shapes `moec bench attention` shows.
std::vector<AttentionSpec> bench_attention_shapes(bool bf16);
// Forward and backward. A causal mask counts half of all pairs, a window the
// pairs in it; the backward counts 2.5 times the forward.
std::vector<BenchRow> bench_attention(KernelLibrary&, const AttentionSpec&,
                                      double seconds);

}  // namespace moec
