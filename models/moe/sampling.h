// Choosing the next token from logits.
#pragma once
#include <cstdint>
#include <span>

namespace moec::moe {

struct SamplingOptions {
  double temperature = 1;         // 0: the most likely token
  int64_t top_k = 0;              // only the k most likely; 0: all
  double top_p = 1;               // the fewest that reach this probability
  double min_p = 0;               // at least this share of the likeliest's
  double repetition_penalty = 1;  // on tokens of the context (Keskar 2019)
  uint64_t seed = 0;
};
// UsageError for values out of range.
void check(const SamplingOptions& options);

// A token for the `position`-th of row `row`: a pure function of logits,
// context, options, row and position. Filters apply in the order above, after
// penalty and temperature; ties go to the lowest id.
int32_t sample(std::span<const float> logits, std::span<const int32_t> context,
               const SamplingOptions& options, int64_t row, int64_t position);

}  // namespace moec::moe
