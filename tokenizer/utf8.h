// Strict UTF-8 (RFC 3629): no overlong forms, no surrogates, at most U+10FFFF.
#pragma once
#include <cstdint>
#include <string>

namespace moec::bpe {

// The code point at p < end and its length; -1 and length 1 where the bytes
// are no well-formed sequence.
inline int32_t decode_utf8(const uint8_t* p, const uint8_t* end, int& length) {
  auto tail = [&](int i) { return end - p > i && (p[i] & 0xC0) == 0x80; };
  uint8_t b = p[0];
  length = 1;
  if (b < 0x80) return b;
  if (b >= 0xC2 && b < 0xE0 && tail(1)) {
    length = 2;
    return (b & 31) << 6 | (p[1] & 63);
  }
  if ((b & 0xF0) == 0xE0 && tail(1) && tail(2)) {
    int32_t c = (b & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63);
    if (c < 0x800 || (c >= 0xD800 && c < 0xE000)) return -1;
    length = 3;
    return c;
  }
  if (b >= 0xF0 && b < 0xF5 && tail(1) && tail(2) && tail(3)) {
    int32_t c =
        (b & 7) << 18 | (p[1] & 63) << 12 | (p[2] & 63) << 6 | (p[3] & 63);
    if (c < 0x10000 || c > 0x10FFFF) return -1;
    length = 4;
    return c;
  }
  return -1;
}

inline void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += {char(0xC0 | c >> 6), char(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    out += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 63)),
            char(0x80 | (c & 63))};
  } else {
    out += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 63)),
            char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))};
  }
}

// How many of the last bytes begin a sequence that more bytes could complete.
inline size_t utf8_pending(std::string_view s) {
  for (size_t n = 1; n <= 3 && n <= s.size(); ++n) {
    auto at = [&](size_t i) { return uint8_t(s[s.size() - n + i]); };
    uint8_t b = at(0);
    if ((b & 0xC0) == 0x80) continue;
    size_t want = b >= 0xC2 && b < 0xE0   ? 2
                  : (b & 0xF0) == 0xE0    ? 3
                  : b >= 0xF0 && b < 0xF5 ? 4
                                          : 1;
    if (n >= want) return 0;
    bool hopeless =
        n > 1 && ((b == 0xE0 && at(1) < 0xA0) || (b == 0xED && at(1) > 0x9F) ||
                  (b == 0xF0 && at(1) < 0x90) || (b == 0xF4 && at(1) > 0x8F));
    return hopeless ? 0 : n;
  }
  return 0;
}

}  // namespace moec::bpe
