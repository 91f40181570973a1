// The classes of Unicode 16 code points that split patterns tell apart.
#pragma once
#include <cstdint>

#include "tokenizer/utf8.h"

namespace moec::bpe {

enum Class : uint8_t {
  kOther,
  kUpper,   // Lu, Lt
  kLower,   // Ll
  kLetter,  // Lm, Lo: counts as either case
  kMark,    // M: no letter, but o200k takes it into words
  kNumber,  // N
  kSpace    // White_Space
};

inline bool is_letter(uint8_t c) { return c >= kUpper && c <= kLetter; }

// Run-length text of all classes (unicode_tables.cpp, generated).
extern const char kClassRuns[];

// Two levels: 128 code points a page.
struct ClassTable {
  uint8_t page[0x110000 / 128];
  uint8_t of[256][128];

  uint8_t operator[](uint32_t code_point) const {
    return of[page[code_point >> 7]][code_point & 127];
  }
};

const ClassTable& class_table();

// The class at p < end and the length of its character. A byte that is no part
// of a well-formed sequence is a character of class Other by itself.
inline uint8_t class_at(const ClassTable& t, const uint8_t* p,
                        const uint8_t* end, int& length) {
  if (*p < 0x80) {
    length = 1;
    return t.of[t.page[0]][*p];
  }
  int32_t c = decode_utf8(p, end, length);
  return c < 0 ? uint8_t(kOther) : t[uint32_t(c)];
}

}  // namespace moec::bpe
