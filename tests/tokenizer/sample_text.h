// Texts that are hard to cut: seeded mixtures of what split patterns look at.
#pragma once
#include <cstdint>
#include <random>
#include <string>

namespace moec {

// `n` parts or so; valid UTF-8 only if `valid`.
inline std::string hard_text(uint32_t seed, int n, bool valid = false) {
  static const char* const parts[] = {" ",
                                      " ",
                                      " ",
                                      "  ",
                                      "\n",
                                      "\r\n",
                                      "\n\n",
                                      "\t",
                                      "\n  \n",
                                      "   ",
                                      "a",
                                      "b",
                                      "x",
                                      "The",
                                      "hello",
                                      "WORLD",
                                      "CamelCase",
                                      "lLuUl",
                                      "ab",
                                      "1",
                                      "12",
                                      "123",
                                      "4567",
                                      "890123456789",
                                      "'s",
                                      "'S",
                                      "'ll",
                                      "'lL",
                                      "'re",
                                      "'VE",
                                      "'d",
                                      "'m",
                                      "'",
                                      "''",
                                      "\u017f",
                                      "'\u017f",
                                      "!",
                                      "?!",
                                      "...",
                                      "//",
                                      "/",
                                      "\n/",
                                      "/\n",
                                      "_",
                                      "-",
                                      "\"",
                                      "(",
                                      ")",
                                      "{\n",
                                      "é",
                                      "É",
                                      "ß",
                                      "Ω",
                                      "ж",
                                      "Ж",
                                      "ªº",
                                      "中",
                                      "文字",
                                      "ひら",
                                      "한국어",
                                      "\u0301",
                                      "e\u0301",
                                      "नमस्ते",
                                      "ไทย",
                                      "٣",
                                      "१२३४",
                                      "Ⅷ",
                                      "½",
                                      "²",
                                      "\u00a0",
                                      "\u2003",
                                      "\u3000",
                                      "\u2028",
                                      "\u0085",
                                      "\u180e",
                                      "\u200b",
                                      "“",
                                      "”",
                                      "—",
                                      "…",
                                      "，",
                                      "。",
                                      "𝄞",
                                      "😀",
                                      "👩‍👩‍👧",
                                      "ǅ",
                                      "ʰ",
                                      "\u1cf4",
                                      "don't",
                                      "it's's",
                                      "x'y",
                                      "$1,000.00",
                                      "0x1F",
                                      "a_b",
                                      "f(x)",
                                      "=>",
                                      "\x01",
                                      "\x1f",
                                      "\x7f",
                                      "\0",
                                      "if (x)\n    return;\n",
                                      "-----------------"};
  static const char* const bad[] = {"\x80",     "\xff",     "\xc3",
                                    "\xe2\x82", "\xc0\xaf", "\xed\xa0\x80",
                                    "\xf0\x9f", "\xf5",     "\xe0\x80"};
  std::mt19937 random(seed);
  std::string out;
  for (int i = 0; i < n; ++i) {
    uint32_t r = random();
    if (!valid && r % 41 == 0)
      out += bad[(r >> 8) % std::size(bad)];
    else if (r % 43 == 0)
      out.append(1 + (r >> 8) % 90, " \nax!1\t"[(r >> 16) % 7]);
    else if (auto s = parts[(r >> 8) % std::size(parts)]; *s)
      out += s;
    else
      out += '\0';
  }
  return out;
}

}  // namespace moec
