#include "tokenizer/train.h"

#include <fstream>
#include <numeric>

#include "support/error.h"
#include "support/file.h"
#include "tests/test.h"
#include "tests/tokenizer/reference.h"
#include "tests/tokenizer/sample_text.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/pattern.h"

namespace moec {
namespace {

const std::string kGolden = "tests/tokenizer/golden/";

Tokenizer train(std::string_view text, TrainOptions o) {
  return train_bpe(text, o);
}

std::array<uint8_t, 256> by_value() {
  std::array<uint8_t, 256> order;
  std::iota(order.begin(), order.end(), uint8_t(0));
  return order;
}

TEST_CASE("merges are those of rustbpe, Hugging Face and minbpe") {
  std::string text = read_file(kGolden + "text.txt");
  auto raw = train(text, {.vocab = 700});
  auto rust = Tokenizer::load(kGolden + "rustbpe.tiktoken", "gpt4");
  CHECK(raw.vocabulary() == rust.vocabulary());

  auto hf = train(text, {.vocab = 700, .tie = Tie::Hf});
  auto theirs = Tokenizer::load(kGolden + "hf.json");
  CHECK(hf.vocabulary().tokens == theirs.vocabulary().tokens);
  CHECK(hf.vocabulary().merges == theirs.vocabulary().merges);

  Pairs minbpe;
  std::ifstream file(kGolden + "minbpe.txt");
  for (uint32_t a, b; file >> a >> b;) minbpe.push_back({a, b});
  CHECK(minbpe.size() == 444);
  CHECK(pairs_of(train(text, {.vocab = 700, .tie = Tie::First})) == minbpe);
}

TEST_CASE("merges are those of the definition, for any number of threads") {
  for (uint32_t seed = 0; seed < 25; ++seed) {
    CAPTURE(seed);
    std::string text = hard_text(seed, 300 + int(seed) * 10);
    auto& pattern = bpe::named_patterns()[seed % 5];
    std::string regex = seed % 7 == 0 ? "" : std::string(pattern.regex);
    for (Tie tie : {Tie::Raw, Tie::Hf, Tie::First}) {
      auto order = tie == Tie::Hf ? bpe::alphabet_order() : by_value();
      Pairs expected =
          reference_train(text, regex, 400, tie == Tie::First, order);
      for (int threads : {1, 2, 3, 8}) {
        auto t = train(
            text,
            {.vocab = 400, .pattern = regex, .tie = tie, .threads = threads});
        REQUIRE(pairs_of(t) == expected);
      }
    }
  }
}

TEST_CASE(
    "many ranges and large merges give the same files on 1 to 8 threads") {
  std::string text;
  for (uint32_t i = 0; i < 10; ++i)
    text += hard_text(i, 20000) + std::string(40000, 'a') + " b";
  // Enough places of one pair for a merge to be shared among the threads.
  for (uint32_t i = 0; i < 60000; ++i)
    text += " w" + std::to_string(i * 2654435761u % 1000003) + "on";
  for (Tie tie : {Tie::Raw, Tie::First}) {
    std::string one;
    for (int threads = 1; threads <= 8; threads += tie == Tie::Raw ? 1 : 3) {
      auto json = train(text, {.vocab = 1500, .tie = tie, .threads = threads})
                      .to_json();
      if (threads == 1) one = json;
      REQUIRE(json == one);
    }
  }
}

TEST_CASE("training ends where no pair is left, or none frequent enough") {
  CHECK(train("", {.vocab = 300}).vocab_size() == 256);
  CHECK(train("abc abc abc", {.vocab = 1000}).vocab_size() == 256 + 3);
  auto t = train("aab aab xy", {.vocab = 1000, .min_count = 2});
  CHECK(pairs_of(t) == reference_train("aab aab xy", bpe::named_pattern("gpt4"),
                                       1000, false, by_value(), 2));
}

TEST_CASE("a run of one letter and every control byte") {
  std::string text(1000000, 'a');
  auto t = train(text, {.vocab = 300});
  // 19 doublings, and 6 to join what remains of them.
  CHECK(t.vocab_size() == 256 + 25);
  CHECK(t.decode(t.encode(text)) == text);
  std::string control;
  for (int r = 0; r < 3; ++r)
    for (int b = 0; b < 256; ++b) control += char(b);
  auto u = train(control, {.vocab = 600});
  CHECK(u.decode(u.encode(control)) == control);
}

TEST_CASE("special tokens cut the text and are numbered last") {
  auto t = train("ab<|e|>ab<|e|>ab", {.vocab = 300, .specials = {"<|e|>"}});
  CHECK(t.vocab_size() == 258);
  CHECK(t.token_id("<|e|>") == 257);
  CHECK(t.encode("ab<|e|>", {.specials = true}) == Ids{256, 257});
  CHECK(t.encode("ab<|e|>").size() > 2);
  CHECK_THROWS_AS(train("a", {.vocab = 256, .specials = {"x"}}), UserError);
  CHECK_THROWS_AS(train("a", {.vocab = 300, .specials = {"x", "x"}}),
                  UserError);
}

TEST_CASE("a seed vocabulary comes first") {
  std::string text = hard_text(5, 3000);
  auto all = train(text, {.vocab = 500});
  auto half = train(text, {.vocab = 380});
  CHECK(train(text, {.vocab = 500, .seed = half}).vocabulary() ==
        all.vocabulary());
  auto other = train("qzqzqz qzqz", {.vocab = 259});
  auto mixed = train(text, {.vocab = 400, .seed = other});
  CHECK(mixed.vocabulary().tokens[256] == other.vocabulary().tokens[256]);
  CHECK(mixed.vocab_size() == 400);
  CHECK_THROWS_AS(train(text, {.vocab = 400, .tie = Tie::Hf, .seed = other}),
                  UserError);
}

TEST_CASE("files are one text each, and a missing one is named") {
  TempDir dir;
  auto a = (dir / "a").string(), b = (dir / "b").string();
  write_file_atomic(a, "ab ab");
  write_file_atomic(b, "b abab");
  auto t = train_bpe_files({a, b, a}, {.vocab = 300});
  CHECK(t.vocabulary().tokens[256] == "ab");
  CHECK_THROWS_WITH_AS(train_bpe_files({dir / "c"}, {}),
                       doctest::Contains("/c"), UserError);
  CHECK_THROWS_AS(train("a", {.vocab = 255}), UserError);
  CHECK_THROWS_AS(parse_tie("best"), UsageError);
}

TEST_CASE("a config's tokenizer by name") {
  CHECK(make_tokenizer("char", "hello", 1).vocab_size() == 4);
  CHECK(make_tokenizer("bytes", "hello", 1).vocab_size() == 256);
  CHECK(make_tokenizer("bpe:300", "hello hello", 1).vocab_size() == 261);
  CHECK_THROWS_AS(make_tokenizer("bpe:12", "hello", 1), UsageError);
  CHECK_THROWS_AS(make_tokenizer("bpe:9x", "hello", 1), UsageError);
}

}  // namespace
}  // namespace moec
