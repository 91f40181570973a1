// Short pieces on AVX-512, several side by side: a piece's merge waits for the
// tables that the one before it asked for.
#include <immintrin.h>

#include <algorithm>
#include <bit>

#include "tokenizer/function_target.h"
#include "tokenizer/merge_short.h"

MOEC_TARGET_BEGIN("avx512f,avx512bw,avx512vl,bmi,bmi2,lzcnt")

namespace moec::bpe {
namespace {

// kBlocks registers of 16 places. A place's word is the rank of the pair that
// begins there and below it the place itself, so that the least word is the
// pair to merge. One place more at each end, of an id that merges with none.
template <size_t kBlocks>
struct Merging {
  static constexpr size_t kPlaces = kBlocks * 16;
  alignas(64) uint32_t words[kPlaces];
  uint64_t alive;  // bit i: an id still begins at place i
  uint32_t id_at[kPlaces + 2], made_at[kPlaces + 2];
  ShortIds* piece;
  // The merge under way: its place, the id that goes, those before.
  size_t at;
  uint64_t gone, before;
  PairTable::Question left, right;

  void start(const PairTable& pairs, ShortIds& p) {
    piece = &p;
    size_t n = p.count;
    uint32_t* id = id_at + 1;
    id[-1] = id[kPlaces] = kNone;
    alive = ~uint64_t(0) >> (64 - n);
    const __m512i none = _mm512_set1_epi32(-1);
    for (size_t b = 0; b < kBlocks; ++b) {
      _mm512_storeu_si512(
          id + 16 * b, _mm512_mask_loadu_epi32(none, __mmask16(alive >> 16 * b),
                                               p.ids + 16 * b));
      _mm512_store_si512(words + 16 * b, none);
    }
    for (size_t i = 0; i + 1 < n; ++i)
      words[i] = word(i, pairs.find_low(id[i], id[i + 1]));
  }

  // Past all others where there is no merge: ranks have 26 bits.
  uint32_t word(size_t i, uint64_t merge) {
    made_at[i + 1] = uint32_t(merge);
    return uint32_t(merge >> 32) << 6 | (uint32_t(i) & 63);
  }

  // A merge in three steps, without branches, so that those of several pieces
  // overlap: chooses it and asks for the pairs that it makes; false where there
  // is none.
  bool choose(const PairTable& pairs) {
    __m512i low = _mm512_load_si512(words);
    for (size_t b = 1; b < kBlocks; ++b)
      low = _mm512_min_epu32(low, _mm512_load_si512(words + 16 * b));
    uint32_t least = _mm512_reduce_min_epu32(low);
    if (least >= kNone << 6) return false;
    uint32_t* id = id_at + 1;
    at = least & 63;
    uint64_t from = alive >> at << at, after = from & (from - 1);
    gone = after & (0 - after);
    before = alive ^ from;
    alive ^= gone;
    after ^= gone;
    uint32_t made = made_at[at + 1];
    id[at] = made;
    size_t next = std::min(size_t(std::countr_zero(after)), kPlaces);
    right = pairs.ask(made, id[next]);
    left = pairs.ask(id[63 - std::countl_zero(before)], made);
    return true;
  }

  void look(const PairTable& pairs) {
    pairs.look(right);
    pairs.look(left);
  }

  void take(const PairTable& pairs) {
    // -1 where nothing is before; the word then set belongs to no pair.
    int last = 63 - std::countl_zero(before);
    uint32_t r = word(at, pairs.answer(right));
    uint32_t l = word(size_t(last), pairs.answer(left));
    for (size_t b = 0; b < kBlocks; ++b) {
      __m512i w = _mm512_load_si512(words + 16 * b);
      auto set = [&](uint64_t place, uint32_t value) {
        w = _mm512_mask_set1_epi32(w, __mmask16(place >> 16 * b), int(value));
      };
      set(gone, kNone);
      set(uint64_t(1) << at, r);
      set(uint64_t(1) << (last & 63), l);
      _mm512_store_si512(words + 16 * b, w);
    }
  }

  void finish() {
    uint32_t n = 0;
    for (; alive; alive &= alive - 1)
      piece->ids[n++] = id_at[1 + std::countr_zero(alive)];
    piece->count = n;
  }
};

// The pieces of more than `above` ids that fit into kBlocks registers, in turn
// a merge of each.
template <size_t kBlocks>
void merge(const PairTable& pairs, std::span<ShortIds> pieces, size_t above) {
  constexpr size_t kAtOnce = 32 / kBlocks;
  Merging<kBlocks> all[kAtOnce];
  uint8_t busy[kAtOnce];
  for (size_t next = 0; next < pieces.size();) {
    size_t n = 0;
    for (; next < pieces.size() && n < kAtOnce; ++next) {
      ShortIds& p = pieces[next];
      if (p.count <= above || p.count > kBlocks * 16) continue;
      all[n].start(pairs, p);
      busy[n] = uint8_t(n);
      ++n;
    }
    while (n) {
      size_t left = 0;
      for (size_t i = 0; i < n; ++i) {
        Merging<kBlocks>& m = all[busy[i]];
        busy[left] = busy[i];
        if (m.choose(pairs))
          ++left;
        else
          m.finish();
      }
      n = left;
      for (size_t i = 0; i < n; ++i) all[busy[i]].look(pairs);
      for (size_t i = 0; i < n; ++i) all[busy[i]].take(pairs);
    }
  }
}

}  // namespace

void merge_short_avx512(const PairTable& pairs, std::span<ShortIds> pieces) {
  merge<1>(pairs, pieces, 0);
  merge<2>(pairs, pieces, 16);
  merge<4>(pairs, pieces, 32);
}

}  // namespace moec::bpe

MOEC_TARGET_END
