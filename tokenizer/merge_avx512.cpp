// Short pieces on AVX-512: the ranks of all pairs stay in registers.
#include <immintrin.h>

#include <bit>

#include "tokenizer/merge_short.h"

#ifdef __clang__
#pragma clang attribute push(                                            \
    __attribute__((target("avx512f,avx512bw,avx512vl,bmi,bmi2,lzcnt"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,bmi,bmi2,lzcnt")
#endif

namespace moec::bpe {
namespace {

// kBlocks registers of 16 places. A place's word is the rank of the pair that
// begins there and below it the place itself, so that the least word is the
// pair to merge; kNone: no pair.
template <size_t kBlocks>
size_t merge(const PairTable& pairs, uint32_t* ids, size_t n) {
  constexpr size_t kPlaces = kBlocks * 16;
  alignas(64) uint32_t words[kPlaces];
  // One place more at each end, of an id that merges with none.
  uint32_t made[kPlaces + 2], padded[kPlaces + 2];
  uint32_t* id = padded + 1;
  id[-1] = id[kPlaces] = kNone;
  for (size_t i = 0; i < kPlaces; ++i) id[i] = i < n ? ids[i] : kNone;
  auto word = [&](size_t i, const PairTable::Entry& e) {
    made[i + 1] = e.id;
    return e.rank == kNone ? kNone : e.rank << 6 | uint32_t(i);
  };
  for (size_t i = 0; i + 1 < n; ++i)
    words[i] = word(i, pairs.find_low(id[i], id[i + 1]));
  for (size_t i = n - 1; i < kPlaces; ++i) words[i] = kNone;
  __m512i w[kBlocks];
  for (size_t b = 0; b < kBlocks; ++b) w[b] = _mm512_load_si512(words + 16 * b);
  auto set = [&](uint64_t place, uint32_t value) {
    for (size_t b = 0; b < kBlocks; ++b)
      w[b] =
          _mm512_mask_set1_epi32(w[b], __mmask16(place >> 16 * b), int(value));
  };
  // Bit i: an id still begins at place i.
  uint64_t alive = n == 64 ? ~uint64_t(0) : (uint64_t(1) << n) - 1;
  for (;;) {
    __m512i low = w[0];
    for (size_t b = 1; b < kBlocks; ++b) low = _mm512_min_epu32(low, w[b]);
    uint32_t least = _mm512_reduce_min_epu32(low);
    if (least == kNone) break;
    size_t i = least & 63;
    uint64_t bit = uint64_t(1) << i;
    uint64_t after = alive & ~(bit | (bit - 1)), before = alive & (bit - 1);
    uint64_t gone = after & (0 - after);
    alive ^= gone;
    after ^= gone;
    uint32_t made_now = made[i + 1];
    id[i] = made_now;
    size_t next = after ? size_t(std::countr_zero(after)) : kPlaces;
    uint32_t right = word(i, pairs.find(made_now, id[next]));
    set(gone, kNone);
    set(bit, right);
    if (before) {
      size_t h = 63 - size_t(std::countl_zero(before));
      set(uint64_t(1) << h, word(h, pairs.find(id[h], made_now)));
    }
  }
  size_t left = 0;
  for (; alive; alive &= alive - 1) ids[left++] = id[std::countr_zero(alive)];
  return left;
}

}  // namespace

size_t merge_short_avx512(const PairTable& pairs, uint32_t* ids, size_t n) {
  return n <= 16   ? merge<1>(pairs, ids, n)
         : n <= 32 ? merge<2>(pairs, ids, n)
                   : merge<4>(pairs, ids, n);
}

}  // namespace moec::bpe

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
