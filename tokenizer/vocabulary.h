// The plain data of a tokenizer: what every file format holds and what the
// encoder is built from. Readers fill it, check() holds it together.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace moec::bpe {

enum class Kind : uint8_t {
  Bpe,   // byte-level pairs; no merges at all = one token per byte
  Chars  // one token per code point
};

// `left` and `right` become `result`, whose bytes are theirs joined. A merge's
// rank is its place in the list; lower ranks go first.
struct Merge {
  uint32_t left, right, result;
  bool operator==(const Merge&) const = default;
};

// A token matched in the text as a whole, before any splitting. `special` ones
// only where the caller asks for it.
struct AddedToken {
  std::string text;
  uint32_t id;
  bool special;
  bool operator==(const AddedToken&) const = default;
};

struct Vocabulary {
  Kind kind = Kind::Bpe;
  // Bytes by id; empty = no such token (ids may have holes).
  std::vector<std::string> tokens;
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  // The regular expression that cuts text into pieces; empty = one piece.
  std::string pattern;
  // A piece that is a token is never merged from its bytes (Llama 3).
  bool ignore_merges = false;
  // Text goes through Unicode NFC first (Qwen); then decoding gives that form.
  bool nfc = false;
  // HF's post_processor as JSON text, kept as it is ("" = none).
  std::string post_processor;

  // One more than the largest id.
  int64_t size() const;
  bool operator==(const Vocabulary&) const = default;
};

// Ids beyond this are refused, so that no file can ask for the memory of a
// hole of billions of ids.
inline constexpr int64_t kMaxId = (1 << 24) - 1;
// The same for a file of so many bytes: ids may leave holes, but a small file
// does not ask for much memory.
constexpr int64_t largest_id(size_t file_bytes) {
  return std::min(kMaxId, int64_t(file_bytes) + (1 << 16));
}

// A longer piece, which no pattern could split, is refused in training and
// encoding: it would take gigabytes.
inline constexpr size_t kLongestPiece = size_t(1) << 26;

// UserError naming `source` where two tokens share their bytes, a merge's
// parts or result do not exist, do not fit together or come twice, or an added
// token is empty, twice there or at a used id.
void check(const Vocabulary& v, const std::string& source);

// The 256 bytes by value and nothing else.
Vocabulary byte_vocabulary();
// The sorted distinct code points of `text`; UserError where it is no UTF-8.
Vocabulary char_vocabulary(std::string_view text);

}  // namespace moec::bpe
