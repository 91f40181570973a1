#include "codegen/cpu/join_launches.h"

#include <algorithm>

#include "support/error.h"

namespace moec {
namespace {

// Longer rows of launches would gain nothing.
constexpr size_t kMostJoined = 4;

struct Conflicts {
  const Program& program;

  // A donated input is its output's memory.
  BufferSlot resolved(BufferSlot s) const {
    if (s.space != PlannedSpace::Input) return s;
    int32_t output = program.donated[size_t(s.index)];
    if (output >= 0) s.space = PlannedSpace::Output, s.index = output;
    return s;
  }
  bool overlap(BufferSlot a, BufferSlot b) const {
    a = resolved(a), b = resolved(b);
    if (a.space != b.space) return false;
    if (a.space != PlannedSpace::Arena) return a.index == b.index;
    return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
  }
  bool overlap(const std::vector<BufferSlot>& a,
               const std::vector<BufferSlot>& b) const {
    return std::ranges::any_of(a, [&](const BufferSlot& x) {
      return std::ranges::any_of(
          b, [&](const BufferSlot& y) { return overlap(x, y); });
    });
  }
  bool between(const LaunchMemory& a, const LaunchMemory& b) const {
    return overlap(a.writes, b.writes) || overlap(a.writes, b.reads) ||
           overlap(a.reads, b.writes);
  }
};

}  // namespace

void join_launches(Program& p, std::span<const LaunchMemory> memory) {
  MOEC_CHECK(memory.size() == p.launches.size());
  const Conflicts conflicts{p};
  size_t first = 0;
  for (size_t i = 1; i < memory.size(); ++i) {
    // A single task is done sooner alone than shared out.
    bool joins = p.launches[i].tasks > 1 && p.launches[i - 1].tasks > 1 &&
                 i - first < kMostJoined;
    for (size_t k = first; joins && k < i; ++k)
      joins = !conflicts.between(memory[k], memory[i]);
    p.launches[i].joins = joins;
    if (!joins) first = i;
  }
}

}  // namespace moec
