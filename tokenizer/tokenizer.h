// Text to token ids and back: byte-level BPE, characters and bytes behind one
// value type. A Tokenizer is immutable and cheap to copy; every const function
// may be called from several threads at once. docs/tokenizer.md shows its use.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/function_ref.h"

namespace moec {

namespace bpe {
struct Vocabulary;
}

struct EncodeOptions {
  // Special tokens written out in the text ("<|endoftext|>") become their ids;
  // otherwise they are ordinary text, so that no user's text can forge them.
  bool specials = false;
  // Workers for long texts and batches; the ids do not depend on it.
  int threads = 1;
};

class Tokenizer {
 public:
  // The format goes by name: *.json (Hugging Face), *.tiktoken, *.model
  // (minbpe), a folder with vocab.json + merges.txt, a folder *.seed. A
  // .tiktoken file holds no split pattern, so it needs one; elsewhere a given
  // `pattern` replaces the file's. A pattern is a name (gpt2 gpt4 cl100k llama3
  // o200k) or a regular expression.
  static Tokenizer load(const std::string& path, std::string_view pattern = {});
  // A tokenizer.json's text; `source` names it in errors.
  static Tokenizer from_json(std::string_view json, const std::string& source);
  // Ids by the sorted distinct code points of `text`, which must be UTF-8.
  static Tokenizer chars(std::string_view text);
  // Ids are byte values.
  static Tokenizer bytes();
  // UserError naming `source` where the vocabulary contradicts itself.
  static Tokenizer from(bpe::Vocabulary v, const std::string& source);

  // The same formats by name as load(); throws UserError where the format
  // cannot hold this tokenizer.
  void save(const std::string& path) const;
  std::string to_json() const;

  // One more than the largest id.
  int64_t vocab_size() const;
  bool has(uint32_t id) const;
  // The bytes of one token; UserError for an id that is none.
  std::string_view token_bytes(uint32_t id) const;
  // The id of an added or ordinary token with exactly these bytes, or -1.
  int64_t token_id(std::string_view bytes) const;

  // BPE takes every byte string, valid UTF-8 or not. UserError where the text
  // has a character (or byte) that the vocabulary lacks.
  std::vector<uint32_t> encode(std::string_view text,
                               const EncodeOptions& options = {}) const;
  // The ids in order, a part at a time, without holding them all.
  void encode_to(std::string_view text,
                 FunctionRef<void(std::span<const uint32_t>)> sink,
                 const EncodeOptions& options = {}) const;
  std::vector<std::vector<uint32_t>> encode_batch(
      std::span<const std::string_view> texts,
      const EncodeOptions& options = {}) const;
  // As many ids as encode() would give.
  int64_t count(std::string_view text, const EncodeOptions& options = {}) const;
  // The exact bytes; UserError for an id that is none.
  std::string decode(std::span<const uint32_t> ids) const;

  const bpe::Vocabulary& vocabulary() const;

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

// Decodes ids one by one for display: what add() returns never ends inside a
// code point that the next token may complete. All returned text joined is
// exactly decode() of all ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer);
  std::string add(uint32_t id);
  // The bytes still held back.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  std::string held_;
};

}  // namespace moec
