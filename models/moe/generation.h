// Text from a model: prompts in, tokens out, one by one.
#pragma once
#include <functional>
#include <map>
#include <vector>

#include "models/moe/engine.h"
#include "models/moe/sampling.h"
#include "models/moe/transformer.h"

namespace moec::moe {

struct GenerateOptions {
  SamplingOptions sampling;
  i64 max_tokens = 100;
  std::vector<int32_t> stop;  // a row ends before one of these
};

// Called with each new token; returning false ends that row.
using TokenSink = std::function<bool(i64 row, int32_t token)>;

class Generator {
 public:
  // All must outlive this; `state` holds the parameters. Functions are
  // compiled when first needed and kept.
  Generator(Engine& engine, const Transformer& model, State& state);

  // Continues every prompt (at least one token each) and returns the new
  // tokens of each row. Rows do not influence each other. With learned
  // positions the model sees the last train.seq tokens.
  std::vector<std::vector<int32_t>> generate(
      const std::vector<std::vector<int32_t>>& prompts,
      const GenerateOptions& options, const TokenSink& sink = {});

 private:
  Function& next_function(i64 rows, i64 length);

  Engine& engine_;
  const Transformer& model_;
  State& state_;
  std::map<std::pair<i64, i64>, Function> functions_;
};

}  // namespace moec::moe
