// Runs passes over a graph: each is timed, and the graph verified and shown
// to the dump hook after it.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "passes/pass.h"

namespace moec {

// Called with the graph before the first pass (index 0, "input") and after
// each one (index 1, 2, ...).
using DumpHook =
    std::function<void(int index, std::string_view pass, const Graph&)>;
// Called where a stage ends.
using StageHook = std::function<void(Stage, const Graph&)>;

struct RunOptions {
  DumpHook dump;
  StageHook stage;
  // Cuts the standard pipeline: the first and the last pass that run, by
  // name (its first occurrence from, its last occurrence to) or by number, as
  // in the file names of dumps. The others keep their numbers.
  std::string from_pass, to_pass;
};

struct PassStats {
  std::string_view name;
  double ms = 0;
  int nodes_before = 0, nodes_after = 0;
  bool changed = false;
};

// An InternalError of a pass names a file that holds the graph before it, and
// the command that shows it again.
//
// By name, in that order. An unknown name is a UsageError that suggests one.
std::vector<PassStats> run_passes(Graph&, const std::vector<std::string>& names,
                                  PassContext&, const RunOptions& = {});
std::vector<PassStats> run_pipeline(Graph&, PassContext&,
                                    const RunOptions& = {});

// Throws InternalError if the graph is not in the stage's legal form.
void check_stage(const Graph&, Stage, const PipelineOptions&);

// docs/passes.md: the passes and the standard pipeline.
std::string passes_reference();

}  // namespace moec
