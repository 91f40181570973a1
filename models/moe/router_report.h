// Which experts serve which tokens of a text.
#pragma once
#include <string>
#include <vector>

#include "models/moe/engine.h"
#include "models/moe/transformer.h"
#include "runtime/token_source.h"

namespace moec::moe {

struct ExpertReport {
  i64 choices = 0;
  double share = 0;             // of the layer's choices
  std::vector<int32_t> tokens;  // most often served first, at most 8
};

struct LayerReport {
  double entropy = 0;  // of the shares, over log(experts): 1 is balanced
  i64 dead = 0;        // experts that nothing chose
  std::vector<ExpertReport> experts;
};

// One per MoE layer, dropless. `state` holds the parameters.
std::vector<LayerReport> report_routing(Engine& engine,
                                        const Transformer& model, State& state,
                                        const TokenSource& tokens);

}  // namespace moec::moe
