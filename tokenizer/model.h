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

#include "tokenizer/pair_table.h"
#include "tokenizer/split.h"
#include "tokenizer/vocabulary.h"

namespace moec::bpe {

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

// The id of a piece that is a token and never merged from its bytes, or kNone.
uint32_t whole_piece(const Model& m, const uint8_t* piece, size_t n);

// UserError for a byte that the vocabulary lacks.
void write_byte_ids(const Model& m, const uint8_t* piece, size_t n,
                    uint32_t* ids);

// The exact ids of one piece of kind Bpe, n >= 1 bytes. UserError for a byte
// that the vocabulary lacks and for a piece over 64 MiB.
void merge_piece(const Model& m, const uint8_t* piece, size_t n,
                 std::vector<uint32_t>& ids);

}  // namespace moec::bpe
