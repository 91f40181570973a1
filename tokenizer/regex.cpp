#include "tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "support/error.h"
#include "tokenizer/unicode.h"

namespace moec::bpe {
namespace {

// "\x{41}-\x{5a}..." of the code points that are (not) of the classes in the
// bit set `classes`.
std::string ranges(unsigned classes, bool negated) {
  const ClassTable& t = class_table();
  std::string out;
  auto in = [&](uint32_t c) {
    return c < 0x110000 && (c < 0xD800 || c >= 0xE000) &&
           bool(classes >> t[c] & 1) != negated;
  };
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (!in(c)) continue;
    uint32_t first = c;
    while (in(c + 1)) ++c;
    out += fmt::format("\\x{{{:x}}}", first);
    if (c > first) out += fmt::format("-\\x{{{:x}}}", c);
  }
  return out;
}

struct Known {
  std::string_view text;
  unsigned classes;
  bool negated;
};

constexpr unsigned kLetters = 1 << kUpper | 1 << kLower | 1 << kLetter;
constexpr Known kKnown[] = {
    {R"(\p{Lu}\p{Lt})", 1 << kUpper, false},
    {R"(\p{Lm}\p{Lo})", 1 << kLetter, false},
    {R"(\p{Ll})", 1 << kLower, false},
    {R"(\p{L})", kLetters, false},
    {R"(\P{L})", kLetters, true},
    {R"(\pL)", kLetters, false},
    {R"(\p{N})", 1 << kNumber, false},
    {R"(\P{N})", 1 << kNumber, true},
    {R"(\pN)", 1 << kNumber, false},
    {R"(\p{M})", 1 << kMark, false},
    {R"(\s)", 1 << kSpace, false},
    {R"(\S)", 1 << kSpace, true},
};

// The bytes of [p, end) as valid UTF-8; `from` maps offsets in it back, and is
// empty where nothing had to change.
struct Window {
  std::string text;
  std::vector<uint32_t> from;
  const uint8_t* data;
  size_t size;

  Window(const uint8_t* p, const uint8_t* end) : data(p), size(end - p) {
    int length;
    const uint8_t* q = p;
    while (q < end && decode_utf8(q, end, length) >= 0) q += length;
    if (q == end) return;
    for (q = p; q < end; q += length) {
      int32_t c = decode_utf8(q, end, length);
      append_utf8(text, uint32_t(c < 0 ? 0x10FF00 + *q : c));
      from.resize(text.size(), uint32_t(q - p));
    }
    from.push_back(uint32_t(end - p));
    data = reinterpret_cast<const uint8_t*>(text.data());
    size = text.size();
  }
  uint32_t back(size_t at) const {
    return from.empty() ? uint32_t(at) : from[at];
  }
};

// The largest prefix of [p, p + n) that does not cut a code point.
const uint8_t* whole(const uint8_t* p, size_t n, const uint8_t* end) {
  if (size_t(end - p) <= n) return end;
  std::string_view s(reinterpret_cast<const char*>(p), n);
  return p + n - utf8_pending(s);
}

}  // namespace

std::string expand_classes(const std::string& regex) {
  std::string out;
  bool bracket = false;
  for (size_t i = 0; i < regex.size();) {
    std::string_view rest = std::string_view(regex).substr(i);
    const Known* known = nullptr;
    for (const Known& k : kKnown)
      if (!known && rest.starts_with(k.text)) known = &k;
    if (known) {
      std::string r = ranges(known->classes, known->negated);
      out += bracket ? r : "[" + r + "]";
      i += known->text.size();
    } else if (rest[0] == '\\' && rest.size() > 1) {
      out += rest.substr(0, 2);
      i += 2;
    } else {
      if (rest[0] == '[') bracket = true;
      if (rest[0] == ']') bracket = false;
      out += rest[0];
      ++i;
    }
  }
  return out;
}

Regex::Regex(const std::string& regex) {
  std::string full = expand_classes(regex);
  int error;
  PCRE2_SIZE at;
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(full.data()), full.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (!code) {
    PCRE2_UCHAR why[256];
    pcre2_get_error_message(error, why, sizeof why);
    user_error("the split pattern {} is no regular expression: {}", regex,
               reinterpret_cast<const char*>(why));
  }
  uint32_t behind = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MAXLOOKBEHIND, &behind);
  if (behind > 0) {
    pcre2_code_free(code);
    user_error(
        "the split pattern {} looks behind a piece's start, which is "
        "not supported",
        regex);
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  code_ = code;
}

Regex::~Regex() { pcre2_code_free(static_cast<pcre2_code*>(code_)); }

size_t Regex::split(const uint8_t* p, const uint8_t* stop, const uint8_t* end,
                    uint32_t* ends, size_t capacity) const {
  auto code = static_cast<pcre2_code*>(code_);
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  const PCRE2_SIZE* at = pcre2_get_ovector_pointer(match.get());
  size_t n = 0, reach = 1 << 14;
  for (const uint8_t* q = p; q < stop && n < capacity;) {
    // A match that touches the window's end, or none, asks for a longer window.
    const uint8_t* window_end = whole(q, reach, end);
    Window w(q, window_end);
    uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    if (window_end < end) options |= PCRE2_PARTIAL_HARD;
    size_t done = 0, first = n;
    // A gap before a match is a piece of its own, so two places must be left.
    while (done < w.size && n + 1 < capacity && q + w.back(done) < stop) {
      int rc = pcre2_match(code, w.data + done, w.size - done, 0, options,
                           match.get(), nullptr);
      if (rc < 0 && rc != PCRE2_ERROR_NOMATCH && rc != PCRE2_ERROR_PARTIAL)
        user_error("the split pattern fails on the text (PCRE2 error {})", rc);
      if (rc < 0 && window_end < end) break;
      size_t gap = rc < 0 ? w.size - done : at[0];
      if (gap > 0) ends[n++] = uint32_t(q - p) + w.back(done + gap);
      if (rc >= 0 && at[1] > at[0])
        ends[n++] = uint32_t(q - p) + w.back(done + at[1]);
      done += rc < 0 ? gap : at[1];
    }
    if (n + 1 >= capacity) return n;
    if (n == first) {
      reach *= 2;
      if (reach > size_t(1) << 31)
        user_error("a piece of the text has more than 2 GiB");
    }
    q += w.back(done);
  }
  return n;
}

}  // namespace moec::bpe
