// Small configs and runs of their functions, for tests of models.
#pragma once
#include <string>
#include <vector>

#include "models/moe/engine.h"
#include "models/moe/functions.h"

namespace moec::moe {

// 2 layers, d 8, 2 heads, 4 experts, top 2, vocabulary 11, batch 2, seq 6.
Config small_config(const std::vector<std::string>& overrides = {});

// A model with parameters that are larger than its initial ones, so that
// softmaxes and routing matter.
struct SmallModel {
  explicit SmallModel(const Config& config, const std::string& device = "ref");
  SmallModel(const Config& config, const EngineOptions& options);
  Config config;
  Transformer model;
  State state;
  Engine engine;

  Function function(std::string_view name, i64 rows, i64 seq);
  // logits [rows * seq * vocab] of tokens (rows * seq of them).
  std::vector<float> logits(const std::vector<int32_t>& tokens, i64 rows);
};

// Seeded uniform ids.
std::vector<int32_t> random_ids(i64 count, i64 vocab, uint64_t seed);

// The largest difference over the largest magnitude.
double difference(std::span<const float> a, std::span<const float> b);

// Configs that differ in every choice of [model] and [moe].
std::vector<std::vector<std::string>> variants();

}  // namespace moec::moe
