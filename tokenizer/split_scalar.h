// One piece at a time, character by character: the plain meaning of the named
// patterns, and what the block scanners fall back on.
#pragma once
#include "tokenizer/split.h"

namespace moec::bpe {

struct Cursor {
  const ClassTable& table;
  const uint8_t* end;

  bool newline(const uint8_t* p) const { return *p == '\n' || *p == '\r'; }

  // Past all characters whose class `in` accepts, at most `most` of them.
  template <class F>
  const uint8_t* skip(const uint8_t* p, F in, int64_t most = -1) const {
    for (int length; p < end && most != 0; p += length, --most)
      if (!in(class_at(table, p, end, length))) break;
    return p;
  }
  const uint8_t* letters(const uint8_t* p) const { return skip(p, is_letter); }
  const uint8_t* numbers(const uint8_t* p, int64_t most) const {
    return skip(p, [](uint8_t c) { return c == kNumber; }, most);
  }
  const uint8_t* others(const uint8_t* p) const {
    return skip(p, [](uint8_t c) { return c == kOther || c == kMark; });
  }
  const uint8_t* newlines(const uint8_t* p) const {
    while (p < end && newline(p)) ++p;
    return p;
  }
  bool is(const uint8_t* p, bool (*in)(uint8_t)) const {
    int length;
    return p < end && in(class_at(table, p, end, length));
  }
};

// The length of 's 't 're 've 'm 'll 'd at p, which is an apostrophe; 0 for
// none. Without regard to case, U+017F is an s.
template <bool kAnyCase>
inline int contraction(const uint8_t* p, const uint8_t* end) {
  auto letter = [&](int i) {
    if (end - p <= i) return 0;
    return kAnyCase && p[i] >= 'A' && p[i] <= 'Z' ? p[i] | 0x20 : int(p[i]);
  };
  int a = letter(1);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (kAnyCase && a == 0xC5 && letter(2) == 0xBF) return 3;
  if ((a == 'l' && letter(2) == 'l') ||
      ((a == 'v' || a == 'r') && letter(2) == 'e'))
    return 3;
  return 0;
}

// \s*[\r\n]+ | \s+(?!\S) | \s+ from a space on; kLines: the first of them, and
// kTail: trailing space before everything (cl100k's \s++$).
template <bool kLines, bool kTail>
inline const uint8_t* space_piece(const Cursor& c, const uint8_t* p) {
  const uint8_t *q = p, *last = p, *line = nullptr;
  for (int length; q < c.end; q += length) {
    if (class_at(c.table, q, c.end, length) != kSpace) break;
    last = q;
    if (kLines && c.newline(q)) line = q + 1;
  }
  if (kTail && q == c.end) return q;
  if (line) return line;
  return q == c.end || last == p ? q : last;
}

inline const uint8_t* gpt2_piece(const Cursor& c, const uint8_t* p) {
  int length;
  if (*p == '\'')
    if (int n = contraction<false>(p, c.end)) return p + n;
  const uint8_t* q = *p == ' ' && p + 1 < c.end ? p + 1 : p;
  uint8_t k = class_at(c.table, q, c.end, length);
  if (is_letter(k)) return c.letters(q);
  if (k == kNumber) return c.numbers(q, -1);
  if (k != kSpace) return c.others(q);
  return space_piece<false, true>(c, p);
}

template <bool kTail>
inline const uint8_t* gpt4_piece(const Cursor& c, const uint8_t* p) {
  int length;
  if (*p == '\'')
    if (int n = contraction<true>(p, c.end)) return p + n;
  uint8_t k = class_at(c.table, p, c.end, length);
  if (is_letter(k)) return c.letters(p);
  if (k == kNumber) return c.numbers(p, 3);
  if (!c.newline(p) && c.is(p + length, is_letter))
    return c.letters(p + length);
  const uint8_t* q = c.others(*p == ' ' ? p + 1 : p);
  if (q > p + (*p == ' ')) return c.newlines(q);
  return space_piece<true, kTail>(c, p);
}

// The end of a word from q on: [UB]*[lB]+, else, if kSecond, [UB]+[lB]*, where
// B counts as either case; null for none. The first takes back upper-case
// letters up to the last B where no lower-case letter follows.
template <bool kSecond>
inline const uint8_t* o200k_word(const Cursor& c, const uint8_t* q) {
  auto both = [](uint8_t k) { return k == kLetter || k == kMark; };
  const uint8_t *r = q, *after_both = nullptr;
  int length;
  for (; r < c.end; r += length) {
    uint8_t k = class_at(c.table, r, c.end, length);
    if (k != kUpper && !both(k)) break;
    if (both(k)) after_both = r + length;
  }
  if (r < c.end && class_at(c.table, r, c.end, length) == kLower)
    return c.skip(r, [&](uint8_t k) { return k == kLower || both(k); });
  if (kSecond) return r > q ? r : nullptr;
  return after_both;
}

inline const uint8_t* o200k_piece(const Cursor& c, const uint8_t* p) {
  int length;
  uint8_t k = class_at(c.table, p, c.end, length);
  bool prefix = !c.newline(p) && !is_letter(k) && k != kNumber;
  const uint8_t* word = nullptr;
  if (prefix) word = o200k_word<false>(c, p + length);
  if (!word) word = o200k_word<false>(c, p);
  if (!word && prefix) word = o200k_word<true>(c, p + length);
  if (!word) word = o200k_word<true>(c, p);
  if (word) {
    if (word < c.end && *word == '\'') word += contraction<true>(word, c.end);
    return word;
  }
  if (k == kNumber) return c.numbers(p, 3);
  const uint8_t* q = c.others(*p == ' ' ? p + 1 : p);
  if (q > p + (*p == ' ')) {
    while (q < c.end && (c.newline(q) || *q == '/')) ++q;
    return q;
  }
  return space_piece<true, false>(c, p);
}

template <Scan kScan>
inline const uint8_t* next_piece(const Cursor& c, const uint8_t* p) {
  if constexpr (kScan == Scan::Gpt2) return gpt2_piece(c, p);
  if constexpr (kScan == Scan::Gpt4) return gpt4_piece<false>(c, p);
  if constexpr (kScan == Scan::Cl100k) return gpt4_piece<true>(c, p);
  return o200k_piece(c, p);
}

}  // namespace moec::bpe
