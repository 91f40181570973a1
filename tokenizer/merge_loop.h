// The merges of a list of words: exact, incremental.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "tokenizer/word_count.h"

namespace moec::bpe {

struct MergeOptions {
  size_t merges;       // how many at most
  uint64_t min_count;  // >= 1
  // Ties: the pair standing first in the text, else the smallest (left, right).
  bool first;
  int threads;
  std::array<uint32_t, 256> byte_ids;  // a permutation of 0..255
  // Merged first, whatever their counts.
  std::vector<std::pair<uint32_t, uint32_t>> seed;
  // The number of merges so far and the count of the last one.
  std::function<void(size_t, uint64_t)> progress;
};

// Merge i makes the token 256 + i. `words` is used up; for `first` it must be
// in the order of first occurrence. UserError where the words have 2^32 bytes
// or more.
std::vector<std::pair<uint32_t, uint32_t>> merge_words(
    WordList words, const MergeOptions& options);

}  // namespace moec::bpe
