// Where every value of a scheduled graph lives: one static arena for
// temporaries, and the caller's buffers for arguments and results.
#pragma once
#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <vector>

#include "ir/graph.h"
#include "support/function_ref.h"

namespace moec {

// The alternatives of runtime/abi.h's Space, in its order.
enum class PlannedSpace : uint8_t { Arena, Input, Output, Constant };

struct BufferSlot {
  PlannedSpace space = PlannedSpace::Arena;
  int index = 0;   // of the argument, output or constant
  i64 offset = 0;  // bytes into the arena, a multiple of 64
  i64 bytes = 0;
  bool operator==(const BufferSlot&) const = default;
};

struct PlannedCopy {
  BufferSlot from, to;
};

struct MemoryPlan {
  // Every value. A reshape has its operand's slot and runs nothing; so has a
  // result that is written in place.
  absl::flat_hash_map<Value, BufferSlot> slots;
  // Of nodes that asked for one.
  absl::flat_hash_map<const Node*, BufferSlot> workspaces;
  // Constants of at most kMaxConstantBytes, by index; larger ones are in the
  // arena and are filled where they stand.
  std::vector<Node*> constants;
  // After the last node, in this order: outputs that could not be written
  // where the caller wants them.
  std::vector<PlannedCopy> copies;
  // Per argument: the output that has its name and shares its memory, or -1.
  std::vector<int> donated;
  i64 arena_bytes = 0;
  // The most that lives in the arena at any node: no arena can be smaller.
  i64 live_bytes = 0;
};

inline constexpr i64 kBufferAlignment = 64;
inline constexpr i64 kMaxConstantBytes = 64 << 10;

// Bytes that the node's launches need beside operands and results.
using WorkspaceFn = FunctionRef<i64(const Node&)>;

// Lifetimes follow the order of the nodes.
MemoryPlan plan_memory(const Graph&, WorkspaceFn workspace_bytes);
MemoryPlan plan_memory(const Graph&);

// Whether `result` of the node may be written over `operand` while it is
// read: each element is read before it is written, by the same task.
bool may_write_in_place(const Node&, int result, int operand);

// Per output: the argument whose memory it takes over (its name and type are
// the same), or -1.
std::vector<int> donated_args(const Graph&);

// The most bytes of temporaries alive at once when the nodes (all but
// arguments and return) run in this order; what schedule lowers.
i64 peak_live_bytes(const Graph&, absl::Span<Node* const> order);

}  // namespace moec
