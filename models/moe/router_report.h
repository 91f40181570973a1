// Which experts serve which tokens of a text.
#pragma once
#include <vector>

#include "models/moe/engine.h"
#include "models/moe/load_stats.h"
#include "models/moe/transformer.h"
#include "runtime/token_source.h"

namespace moec::moe {

// How often a token of the vocabulary chose an expert.
struct TokenChoices {
  int32_t token = 0;
  i64 choices = 0;
  double share = 0;  // of all choices that this token makes in the layer
};

struct ExpertReport {
  i64 choices = 0;
  double share = 0;  // of the layer's choices
  // Served most often first; and those that come here most often beyond what
  // the expert's share lets expect, by choices * log(share / expert's share).
  std::vector<TokenChoices> frequent, typical;
};

struct LayerReport {
  LoadStats load;
  std::vector<ExpertReport> experts;
  std::vector<int32_t> first;  // first choice of each token of the excerpt
};

struct RoutingReport {
  std::vector<LayerReport> layers;  // one per MoE layer
  std::vector<int32_t> excerpt;     // the text's first tokens
};

// Dropless, as in generation. `state` holds the parameters.
RoutingReport report_routing(Engine& engine, const Transformer& model,
                             State& state, const TokenSource& tokens);

}  // namespace moec::moe
