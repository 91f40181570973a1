// A vocabulary made ready for encoding: what is looked up, in the form in which
// it is looked up. Immutable, shared by all threads.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/split.h"
#include "tokenizer/vocabulary.h"

namespace moec::bpe {

inline constexpr uint32_t kNone = ~uint32_t(0);

// (left, right) -> the merge's rank and result. Most questions are about pairs
// that do not merge: a small bit set answers nearly all of those. The others go
// through a table of places to the merges in order of rank, where the common
// ones stand close together.
class PairTable {
 public:
  struct Entry {
    uint32_t left = kNone, right = kNone, rank = kNone, id = kNone;
  };
  explicit PairTable(const std::vector<Merge>& merges);
  // Empty; grows as needed.
  explicit PairTable(size_t expected);
  // A pair that is not there yet; ranks rise.
  void insert(uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
  bool has(uint32_t left, uint32_t right) const {
    return find(left, right).rank != kNone;
  }
  bool empty() const { return merges_.size() == 1; }
  // All ranks are below this.
  size_t ranks() const { return empty() ? 0 : size_t(merges_.back().rank) + 1; }

  // The same as find(), for ids that are mostly those of bytes.
  const Entry& find_low(uint32_t left, uint32_t right) const {
    if ((left | right) > 255) return find(left, right);
    return merges_[low_[left << 8 | right]];
  }

  // rank kNone: the two do not merge.
  const Entry& find(uint32_t left, uint32_t right) const {
    uint64_t h = hash(left, right);
    size_t bit = h >> 40 & bit_mask_;
    if (!(bits_[bit / 64] >> bit % 64 & 1)) return merges_[0];
    for (size_t i = h >> 32 & mask_;; i = (i + 1) & mask_) {
      const Entry& e = merges_[places_[i]];
      if ((e.left == left && e.right == right) || e.rank == kNone) return e;
    }
  }

 private:
  static uint64_t hash(uint32_t left, uint32_t right) {
    return (uint64_t(left) << 32 | right) * 0x9E3779B97F4A7C15u;
  }
  void place(uint32_t merge);

  std::vector<Entry> merges_{{}};  // the first one stands for none
  std::vector<uint32_t> places_;   // at most half of them are not 0
  std::vector<uint64_t> bits_;     // 16 an entry of merges_ or more
  // Places in merges_ of the pairs of ids below 256, by left and right.
  std::vector<uint32_t> low_ = std::vector<uint32_t>(1 << 16);
  size_t mask_, bit_mask_;
};

// The id of each single byte; kNone where the vocabulary lacks it.
using ByteIds = std::array<uint32_t, 256>;
ByteIds byte_ids(const Vocabulary& v);

// Finds added tokens in text: at the leftmost place the longest one.
class AddedTokens {
 public:
  // The special ones only if `specials`.
  AddedTokens(const std::vector<AddedToken>& added, bool specials);

  struct Match {
    size_t begin, end;
    uint32_t id;
  };
  // begin == end == text.size() where there is none from `from` on.
  Match find(std::string_view text, size_t from) const;
  bool empty() const { return nodes_.empty(); }

 private:
  struct Node {
    std::unordered_map<uint8_t, uint32_t> next;
    uint32_t id = kNone;
  };
  std::vector<Node> nodes_;  // a trie, root first
  std::array<bool, 256> first_{};
};

struct Model {
  explicit Model(Vocabulary v);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  Vocabulary vocabulary;
  Splitter splitter;
  PairTable pairs;
  ByteIds byte_ids;
  // Kind Chars: ids by code point.
  std::vector<uint32_t> char_ids;
  AddedTokens plain_added, all_added;
  // Bytes by id, added tokens included; empty = no token. And back, ordinary
  // tokens only.
  std::vector<std::string_view> bytes;
  std::unordered_map<std::string_view, uint32_t> ids;
};

// Merges neighbours until none merge: the lowest rank first, the leftmost of
// equals. At most 64 ids by searching a small array, more in O(n log n).
void merge_ids(const PairTable& pairs, std::vector<uint32_t>& ids);

// The exact ids of one piece of kind Bpe, n >= 1 bytes, appended to `out`.
// UserError for a byte that the vocabulary lacks and for a piece over 64 MiB.
void merge_piece(const Model& m, const uint8_t* piece, size_t n,
                 std::vector<uint32_t>& out);

}  // namespace moec::bpe
