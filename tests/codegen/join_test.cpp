// Which launches may run together.
#include "codegen/cpu/join_launches.h"

#include "tests/test.h"

namespace moec {
namespace {

BufferSlot arena(i64 offset, i64 bytes = 64) {
  return {PlannedSpace::Arena, 0, offset, bytes};
}
BufferSlot input(int i) { return {PlannedSpace::Input, i, 0, 64}; }
BufferSlot output(int i) { return {PlannedSpace::Output, i, 0, 64}; }

std::vector<bool> joined(std::vector<LaunchMemory> memory,
                         std::vector<int64_t> tasks = {}) {
  Program p;
  p.donated = {-1, -1, 0};  // input 2 is output 0
  p.launches.resize(memory.size());
  for (size_t i = 0; i < memory.size(); ++i)
    p.launches[i].tasks = i < tasks.size() ? tasks[i] : 8;
  join_launches(p, memory);
  std::vector<bool> joins;
  for (auto& l : p.launches) joins.push_back(l.joins);
  return joins;
}

using Joins = std::vector<bool>;

TEST_CASE("launches that read the same and write apart join") {
  CHECK(joined({{{input(0)}, {arena(0)}},
                {{input(0)}, {arena(64)}},
                {{input(0), input(1)}, {arena(128)}}}) ==
        Joins{false, true, true});
}

TEST_CASE("one that reads, or writes over, what another touches waits") {
  CHECK(joined({{{input(0)}, {arena(0)}}, {{arena(0)}, {arena(64)}}}) ==
        Joins{false, false});
  CHECK(joined({{{arena(0)}, {arena(64)}}, {{input(0)}, {arena(32)}}}) ==
        Joins{false, false});
  CHECK(joined({{{input(0)}, {arena(0)}}, {{input(1)}, {arena(0)}}}) ==
        Joins{false, false});
  // not the launch before, but the first of those that would run with it
  CHECK(joined({{{input(0)}, {arena(0)}},
                {{input(0)}, {arena(64)}},
                {{arena(0)}, {arena(128)}},
                {{arena(64)}, {arena(192)}}}) ==
        Joins{false, true, false, true});
}

TEST_CASE("a donated input is its output") {
  CHECK(joined({{{input(2)}, {arena(0)}}, {{input(0)}, {output(0)}}}) ==
        Joins{false, false});
  CHECK(joined({{{input(1)}, {arena(0)}}, {{input(0)}, {output(1)}}}) ==
        Joins{false, true});
}

TEST_CASE("single tasks run alone") {
  CHECK(joined({{{input(0)}, {arena(0)}}, {{input(0)}, {arena(64)}}}, {1, 8}) ==
        Joins{false, false});
}

}  // namespace
}  // namespace moec
