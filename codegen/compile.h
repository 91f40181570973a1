// From a graph to a function that runs: the pass pipeline, then the backend.
#pragma once
#include <memory>

#include "codegen/backend.h"
#include "passes/pass_manager.h"

namespace moec {

struct CompileOptions {
  PipelineOptions pipeline;  // has_lowering is the backend's
  RunOptions hooks;          // dumps, and cuts of the pipeline
  int debug = 0;             // as MOEC_DEBUG
};

// The graph is left as it is. Errors of the model are UserErrors with the
// node's place.
std::unique_ptr<CompiledFunction> compile(const Graph&, Backend&,
                                          const CompileOptions& = {});

}  // namespace moec
