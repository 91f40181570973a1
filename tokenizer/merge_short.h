// Merging the ids of a short piece, in place: the lowest rank first, the
// leftmost of equals.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tokenizer/model.h"

namespace moec::bpe {

inline constexpr size_t kShortMerge = 64;
// The vector version keeps ranks below this in 26 bits.
inline constexpr size_t kWideRanks = (size_t(1) << 26) - 1;

// Both return how many ids are left of n <= kShortMerge.
size_t merge_short_scalar(const PairTable& pairs, uint32_t* ids, size_t n);
size_t merge_short_avx512(const PairTable& pairs, uint32_t* ids, size_t n);

}  // namespace moec::bpe
