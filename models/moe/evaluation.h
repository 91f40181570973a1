// The loss of a model on text.
#pragma once
#include <vector>

#include "models/moe/engine.h"
#include "runtime/token_source.h"

namespace moec::moe {

struct Evaluation {
  double ce = 0;          // nats a token
  double aux = 0, z = 0;  // sums over the MoE layers; mean over batches
  double loss = 0;        // with aux and z terms
  i64 tokens = 0;         // predicted
  std::vector<std::vector<i64>> load;  // [MoE layer][expert]: choices
};

// `eval` is eval_function() of the config, bound to the parameters. At most
// `batches` batches; 0: all.
Evaluation evaluate(Function& eval, const Config& config,
                    const EvalWindows& windows, i64 rows, i64 batches = 0);

}  // namespace moec::moe
