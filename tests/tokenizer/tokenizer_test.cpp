#include "tokenizer/tokenizer.h"

#include "support/error.h"
#include "tests/test.h"
#include "tokenizer/vocabulary.h"

namespace moec {
namespace {

using Ids = std::vector<uint32_t>;

TEST_CASE("characters are numbered in order of their code points") {
  auto t = Tokenizer::chars("hé a€h𝄞\n");
  CHECK(t.vocab_size() == 7);
  CHECK(t.encode("\n ahé€𝄞") == Ids{0, 1, 2, 3, 4, 5, 6});
  CHECK(t.decode(Ids{3, 4, 6}) == "hé𝄞");
  CHECK_THROWS_WITH_AS(t.encode("hx"), doctest::Contains("\"x\" (U+0078)"),
                       UserError);
  CHECK_THROWS_AS(t.decode(Ids{7}), UserError);
  CHECK_THROWS_WITH_AS(Tokenizer::chars("a\xff"), doctest::Contains("0xff"),
                       UserError);
}

TEST_CASE("bytes are their own ids") {
  auto t = Tokenizer::bytes();
  std::string all;
  Ids ids;
  for (int b = 0; b < 256; ++b) all += char(b), ids.push_back(uint32_t(b));
  CHECK(t.vocab_size() == 256);
  CHECK(t.encode(all) == ids);
  CHECK(t.decode(ids) == all);
}

TEST_CASE("tokenizer.json keeps characters and bytes as they are") {
  for (auto& t : {Tokenizer::chars("a\"\\\n\x01\x7fΩ漢"), Tokenizer::bytes()}) {
    std::string json = t.to_json();
    auto u = Tokenizer::from_json(json, "t.json");
    CHECK(u.vocabulary() == t.vocabulary());
    CHECK(u.to_json() == json);
  }
  TempDir dir;
  auto path = (dir / "tokenizer.json").string();
  Tokenizer::chars("abc").save(path);
  CHECK(Tokenizer::load(path).encode("cab") == Ids{2, 0, 1});
}

TEST_CASE("a stream never ends inside a code point") {
  auto t = Tokenizer::bytes();
  StreamDecoder d(t);
  std::string text = "aé€𝄞\xe2\x82z\xed\xa0\x80\xf0", joined;
  for (char c : text) {
    std::string s = d.add(uint8_t(c));
    CHECK((s.empty() || s == "a" || s == "é" || s == "€" || s == "𝄞" ||
           s == "\xe2\x82z" || s == "\xed\xa0" || s == "\x80"));
    joined += s;
  }
  CHECK(d.finish() == "\xf0");
  CHECK(joined + "\xf0" == text);
}

}  // namespace
}  // namespace moec
