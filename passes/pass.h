// A pass is one function in one file, `bool name(Graph&, PassContext&)`: it
// rewrites the graph in place and returns whether it changed anything. Its
// line in passes.def says what it needs and what holds afterwards.
#pragma once
#include <functional>
#include <string>
#include <string_view>

#include "ir/graph.h"
#include "passes/pipeline.h"

namespace moec {

struct PassContext {
  PipelineOptions options;
  // 1: pass times and node counts; 2: the graph after each changed pass;
  // 3: why fusions did not match.
  int debug = 0;
  std::function<void(std::string_view line)> log;  // empty: stderr

  void print(std::string_view line) const;
  // Reports at level 3 why `pass` left `n` alone.
  void explain(std::string_view pass, const Node& n,
               std::string_view why) const;
  bool explains() const { return debug >= 3; }
};

using PassFn = bool (*)(Graph&, PassContext&);

#define MOEC_PASS(function, name, summary, requires_, establishes) \
  bool function(Graph&, PassContext&);
#include "passes/passes.def"
#undef MOEC_PASS

struct PassInfo {
  PassFn run;
  std::string_view name, summary, needs, establishes;
};

absl::Span<const PassInfo> all_passes();
// nullptr if there is none of that name.
const PassInfo* find_pass(std::string_view name);

}  // namespace moec
