// (left, right) -> the merge's rank and result.
#pragma once
#include <emmintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace moec::bpe {

inline constexpr uint32_t kNone = ~uint32_t(0);
inline constexpr uint64_t kNoMerge = ~uint64_t(0);

// A question costs one line of slots, and one merge if there is such a one:
// merges stand in order of rank, so that the common ones are close together.
// Hardly anything branches, so that many questions are under way at once.
class PairTable {
 public:
  explicit PairTable(const std::vector<Merge>& merges);
  // Empty; grows as needed.
  explicit PairTable(size_t expected);
  // A pair that is not there yet; ranks rise.
  void insert(uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
  bool has(uint32_t left, uint32_t right) const {
    return find(left, right) != kNoMerge;
  }
  bool empty() const { return merges_.size() == 1; }
  // All ranks are below this.
  size_t ranks() const {
    return empty() ? 0 : size_t(merges_.back().value >> 32) + 1;
  }

  // The merge's rank and below it what it makes; or kNoMerge.
  uint64_t find(uint32_t left, uint32_t right) const {
    Question q = ask(left, right);
    look(q);
    return answer(q);
  }
  // The same in three steps, each of which fetches what the next one reads, so
  // that many questions may be under way at once.
  struct Question {
    uint64_t key;
    const void* at;
    uint32_t same;
  };
  Question ask(uint32_t left, uint32_t right) const {
    uint64_t key = uint64_t(left) << 32 | right;
    const Bucket* b = &buckets_[hash(key) >> shift_];
    __builtin_prefetch(b);
    return {key, b, 0};
  }
  void look(Question& q) const {
    auto& b = *static_cast<const Bucket*>(q.at);
    __m128i tags = _mm_load_si128(reinterpret_cast<const __m128i*>(b.tags));
    auto same = uint32_t(_mm_movemask_epi8(
        _mm_cmpeq_epi8(tags, _mm_set1_epi8(tag(hash(q.key))))));
    // Without a match it is the last one's turn, whatever it is.
    const Entry* e = &merges_[b.place(same | 1 << 15)];
    __builtin_prefetch(e);
    q.at = e;
    // More to look at: other matches, or another bucket behind a full one.
    q.same = (same & (same - 1)) | uint32_t(b.tags[15]) << 16;
  }
  uint64_t answer(const Question& q) const {
    auto e = static_cast<const Entry*>(q.at);
    // Which pairs merge cannot be guessed: no branch.
    uint64_t found = e->value | (0 - uint64_t(e->key != q.key));
    if (q.same == 0) [[likely]]
      return found;
    return found != kNoMerge ? found : search(q.key);
  }
  // The same, for ids that are mostly those of bytes.
  uint64_t find_low(uint32_t left, uint32_t right) const {
    if ((left | right) > 255) return find(left, right);
    return merges_[low_[left << 8 | right]].value;
  }

 private:
  struct Entry {
    uint64_t key = kNoMerge, value = kNoMerge;
  };
  // Sixteen merges by a byte of their hash, never 0, and their 24-bit places in
  // merges_. Filled from the front; a full one goes on in the next.
  struct alignas(64) Bucket {
    uint8_t tags[16] = {}, places[48] = {};
    // Of the lowest set bit; the byte before a place is read with it.
    uint32_t place(uint32_t set) const {
      uint32_t word;
      std::memcpy(&word, tags + 15 + 3 * __builtin_ctz(set), 4);
      return word >> 8;
    }
  };
  static constexpr size_t kFill = 10;  // merges a bucket at most, on average
  static uint64_t hash(uint64_t key) { return key * 0x9E3779B97F4A7C15; }
  static char tag(uint64_t hash) { return char(hash >> 36 | 1); }
  uint64_t search(uint64_t key) const;
  void place(uint32_t merge);
  void make_buckets(size_t merges);

  std::vector<Entry> merges_{{}};  // the first one stands for none
  std::vector<Bucket> buckets_;    // a power of two of them
  size_t mask_ = 0;
  int shift_ = 0;  // the highest bits of a hash are its bucket
  // Places in merges_ of the pairs of ids below 256, by left and right.
  std::vector<uint32_t> low_ = std::vector<uint32_t>(1 << 16);
};

}  // namespace moec::bpe
