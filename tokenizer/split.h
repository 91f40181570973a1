// Cuts text into the pieces inside which BPE merges. The named patterns have
// hand-written scanners, 64 bytes at a time with AVX-512 or AVX2 where the
// machine has them; other regular expressions go through PCRE2, about ten times
// slower. All of them see the same Unicode 16 classes, and take a byte that is
// not UTF-8 as a character of class Other.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "tokenizer/unicode.h"

namespace moec::bpe {

enum class Scan : uint8_t {
  Whole,   // no pattern: the text is one piece
  Units,   // nothing ever merges: any cut between characters is safe
  Gpt2,    // also tiktoken's r50k
  Gpt4,    // also Llama 3's, which cuts alike
  Cl100k,  // Gpt4, but trailing white space is one piece
  O200k,
  Regex
};

enum class Isa : uint8_t { Scalar, Avx2, Avx512 };

// The best of this machine.
Isa host_isa();

class Regex;

// Splitter::split of one named pattern.
using SplitFunction = size_t (*)(const ClassTable&, const uint8_t* p,
                                 const uint8_t* stop, const uint8_t* end,
                                 uint32_t* ends, size_t capacity);
SplitFunction split_scalar(Scan scan);
SplitFunction split_avx2(Scan scan);
SplitFunction split_avx512(Scan scan);

class Splitter {
 public:
  // UserError where the expression is none.
  explicit Splitter(const std::string& regex, Isa isa = host_isa());
  // For texts whose characters are never merged; split() is not for it.
  static Splitter units();

  Scan scan() const { return scan_; }

  // Writes the ends of the pieces from p on, relative to p, until a piece
  // reaches `stop` or there are `capacity` (>= 64) of them; returns how many.
  // p is a piece's start; pieces see the text up to `end`, which must be the
  // text's true end or lie behind a safe cut at `stop`. `ends` has kSlack more
  // places than capacity. UserError where a piece has 4 GiB or more.
  size_t split(const uint8_t* p, const uint8_t* stop, const uint8_t* end,
               uint32_t* ends, size_t capacity) const;

  // The first place at or after p where cutting the text changes no piece, for
  // whatever comes before and after; `end` if none is found. The cut lies
  // before a space between two ASCII letters, or before the letter that follows
  // a line break; a named pattern never joins those. Units: before the next
  // byte that continues no character. Regex and Whole: `end`.
  const uint8_t* safe_cut(const uint8_t* begin, const uint8_t* p,
                          const uint8_t* end) const;

  static constexpr size_t kSlack = 64;

 private:
  Scan scan_ = Scan::Units;
  SplitFunction function_ = nullptr;
  std::shared_ptr<const Regex> regex_;

  Splitter() = default;
};

}  // namespace moec::bpe
