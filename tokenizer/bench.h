// Encoding speed on one text.
#pragma once
#include <cstdint>
#include <string_view>

#include "tokenizer/tokenizer.h"

namespace moec {

// MB of text (10^6 bytes) per second, and per second of processor time of all
// threads.
struct TokenizerSpeed {
  double cold, warm, cold_cpu, warm_cpu;
  int64_t tokens;
};

// cold: the first pass of a tokenizer that has encoded nothing yet; warm: the
// best of three more. Each pass leaves all ids in one new array.
TokenizerSpeed bench_tokenizer(const Tokenizer& fresh, std::string_view text,
                               int threads);

}  // namespace moec
