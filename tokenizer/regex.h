// A split pattern that has no scanner of its own, through PCRE2 with its JIT
// compiler. \p{L}, \p{N}, \s and their like are replaced by our Unicode 16
// classes, so that the machine's PCRE2 does not decide what is a letter.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace moec::bpe {

// The expression with its classes written out. A bad byte b of a text is given
// to PCRE2 as the unassigned code point U+10FF00 + b: class Other.
std::string expand_classes(const std::string& regex);

class Regex {
 public:
  explicit Regex(const std::string& regex);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // As Splitter::split; text between two matches is a piece too.
  size_t split(const uint8_t* p, const uint8_t* stop, const uint8_t* end,
               uint32_t* ends, size_t capacity) const;

 private:
  void* code_;
};

}  // namespace moec::bpe
