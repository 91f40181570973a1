// From nodes to launches. Each op that this backend runs directly has a
// lowering in the table of lower.cpp; an empty slot means that the op is
// legalised through its decomposition.
#pragma once
#include <vector>

#include "codegen/cpu/kernel.h"
#include "ir/graph.h"

namespace moec {

struct Target;

// Buffers of a node: operands 0 .. n-1, results n .. n+m-1, and then n+m, the
// node's private workspace.
struct LoweredLaunch {
  KernelSpec spec;
  std::vector<int> buffers;  // of the node, in the kernel's order
  std::vector<i64> offsets;  // bytes into each of them; empty: all 0
  // A copy that is not needed where this operand and result share memory.
  int copy_of = -1, copy_to = -1;
};

// Launches run in order. No launches: the node only renames memory.
struct Lowered {
  std::vector<LoweredLaunch> launches;
  i64 workspace_bytes = 0;
};

using LowerFn = Lowered (*)(const Node&, const Target&);

// nullptr if the op has to be decomposed.
LowerFn cpu_lowering(Op);

// Whether the backend runs this node as it stands on a target: dtypes and
// attributes included. For the pass that legalises.
bool cpu_supports(const Node&, const Target&);

Lowered lower_cpu(const Node&, const Target&);

// Copies `bytes` from buffer 0 to buffer 1.
KernelSpec copy_kernel(i64 bytes);

}  // namespace moec
