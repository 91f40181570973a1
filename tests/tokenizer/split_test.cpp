#include "tokenizer/split.h"

#include <algorithm>

#include "support/error.h"
#include "tests/test.h"
#include "tests/tokenizer/sample_text.h"
#include "tokenizer/pattern.h"
#include "tokenizer/regex.h"

namespace moec::bpe {
namespace {

std::vector<uint32_t> cuts(const Splitter& s, const std::string& text,
                           size_t capacity = 1000) {
  std::vector<uint32_t> out, ends(capacity + Splitter::kSlack);
  auto begin = reinterpret_cast<const uint8_t*>(text.data());
  auto end = begin + text.size();
  for (auto p = begin; p < end;) {
    size_t n = s.split(p, end, end, ends.data(), capacity);
    if (n == 0) break;
    for (size_t i = 0; i < n; ++i) out.push_back(uint32_t(p - begin) + ends[i]);
    p += ends[n - 1];
  }
  return out;
}

std::vector<std::string> pieces(const char* pattern, const std::string& text) {
  std::vector<std::string> out;
  uint32_t at = 0;
  for (uint32_t e : cuts(Splitter(named_pattern(pattern)), text)) {
    out.push_back(text.substr(at, e - at));
    at = e;
  }
  return out;
}

using Strings = std::vector<std::string>;

TEST_CASE("pieces of the named patterns") {
  CHECK(pieces("gpt2", "it's  1234 a\n\nb") ==
        Strings{"it", "'s", " ", " 1234", " a", "\n", "\n", "b"});
  CHECK(pieces("gpt4", "it's  1234 a\n\nb !x\n") ==
        Strings{"it", "'s", " ", " ", "123", "4", " a", "\n\n", "b", " !", "x",
                "\n"});
  CHECK(pieces("gpt4", "a\n  ") == Strings{"a", "\n", "  "});
  CHECK(pieces("cl100k", "a\n  ") == Strings{"a", "\n  "});
  CHECK(pieces("gpt4", "'\u017fa") == Strings{"'\u017f", "a"});
  CHECK(pieces("gpt2", "'\u017fa") == Strings{"'", "\u017fa"});
  CHECK(pieces("o200k", "isn'T CamelCASEs/\n/x") ==
        Strings{"isn'T", " Camel", "CASEs", "/\n/", "x"});
  CHECK(pieces("gpt4", "a\xff\xffz") == Strings{"a", "\xff\xff", "z"});
}

TEST_CASE("a scanner cuts as PCRE2 does on the same classes") {
  for (const NamedPattern& p : named_patterns()) {
    CAPTURE(p.name);
    Splitter scanner{std::string(p.regex), Isa::Scalar};
    Regex regex{std::string(p.regex)};
    for (uint32_t seed = 0; seed < 300; ++seed) {
      CAPTURE(seed);
      std::string text = hard_text(seed, 1 + int(seed));
      auto begin = reinterpret_cast<const uint8_t*>(text.data());
      auto end = begin + text.size();
      std::vector<uint32_t> ends(text.size() + 8);
      ends.resize(regex.split(begin, end, end, ends.data(), ends.size()));
      REQUIRE(cuts(scanner, text) == ends);
    }
  }
}

TEST_CASE("every instruction set cuts alike") {
  for (const NamedPattern& p : named_patterns()) {
    CAPTURE(p.name);
    Splitter plain{std::string(p.regex), Isa::Scalar};
    for (Isa isa : {Isa::Avx2, Isa::Avx512}) {
      if (isa > host_isa()) continue;
      Splitter fast{std::string(p.regex), isa};
      for (uint32_t seed = 0; seed < 3000; ++seed) {
        CAPTURE(seed);
        std::string text = hard_text(seed, 20 + int(seed % 200));
        REQUIRE(cuts(fast, text, 64) == cuts(plain, text));
      }
    }
  }
}

TEST_CASE("a safe cut changes no piece") {
  for (const NamedPattern& p : named_patterns()) {
    CAPTURE(p.name);
    Splitter s{std::string(p.regex)};
    for (uint32_t seed = 0; seed < 300; ++seed) {
      std::string text = hard_text(seed, 400);
      auto begin = reinterpret_cast<const uint8_t*>(text.data());
      auto end = begin + text.size();
      auto cut = s.safe_cut(begin, begin + text.size() / 2, end);
      auto whole = cuts(s, text);
      if (cut < end)
        CHECK(std::count(whole.begin(), whole.end(), cut - begin) == 1);
      std::vector<uint32_t> ends(text.size() + 100);
      size_t n = s.split(begin, cut, end, ends.data(), text.size());
      REQUIRE(n > 0);
      CHECK(ends[n - 1] == cut - begin);
    }
  }
}

TEST_CASE("other expressions: gaps are pieces, errors are errors") {
  CHECK(cuts(Splitter("[a-z]+"), "12ab3c") ==
        std::vector<uint32_t>{2, 4, 5, 6});
  CHECK(cuts(Splitter("x*"), "axxb") == std::vector<uint32_t>{1, 3, 4});
  std::string far = std::string(100000, '-') + "ab" + std::string(70000, 'a');
  CHECK(cuts(Splitter("[a-z]+"), far) == std::vector<uint32_t>{100000, 170002});
  CHECK(cuts(Splitter(""), "any text") == std::vector<uint32_t>{8});
  CHECK_THROWS_AS(Splitter("(a"), UserError);
  CHECK_THROWS_AS(Splitter("(?<=a)b"), UserError);
}

}  // namespace
}  // namespace moec::bpe
