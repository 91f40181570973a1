// Merging the ids of short pieces, in place: the lowest rank first, the
// leftmost of equals.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "tokenizer/pair_table.h"

namespace moec::bpe {

inline constexpr size_t kShortMerge = 64;
// The vector version keeps ranks below this in 26 bits.
inline constexpr size_t kWideRanks = (size_t(1) << 26) - 1;

// 1 to kShortMerge ids; merging leaves the first `count` of them.
struct ShortIds {
  uint32_t* ids;
  uint32_t count;
};

void merge_short(const PairTable& pairs, std::span<ShortIds> pieces);

// The same on any machine, and on one with AVX-512 and fewer ranks than
// kWideRanks.
void merge_short_scalar(const PairTable& pairs, std::span<ShortIds> pieces);
void merge_short_avx512(const PairTable& pairs, std::span<ShortIds> pieces);

}  // namespace moec::bpe
