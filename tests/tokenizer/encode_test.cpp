#include <fstream>
#include <random>

#include "support/error.h"
#include "support/file.h"
#include "tests/test.h"
#include "tests/tokenizer/reference.h"
#include "tests/tokenizer/sample_text.h"
#include "tokenizer/merge_short.h"
#include "tokenizer/model.h"
#include "tokenizer/pattern.h"
#include "tokenizer/piece_cache.h"
#include "tokenizer/token_file.h"

namespace moec {
namespace {

Tokenizer trained(const std::string& pattern = "gpt4", int64_t vocab = 600) {
  return train_bpe(hard_text(1, 6000), {.vocab = vocab, .pattern = pattern});
}

TEST_CASE("ids are tiktoken's") {
  const std::string golden = "tests/tokenizer/golden/";
  auto t = Tokenizer::load(golden + "rustbpe.tiktoken", "gpt4");
  Ids expected;
  std::ifstream file(golden + "tiktoken_ids.txt");
  for (uint32_t id; file >> id;) expected.push_back(id);
  CHECK(t.encode(read_file(golden + "text.txt")) == expected);
}

TEST_CASE("ids are those of the definition, and decoding gives the bytes") {
  for (auto& pattern : {"gpt2", "gpt4", "cl100k", "o200k", "[a-z]+", ""}) {
    CAPTURE(pattern);
    auto t = trained(pattern);
    for (uint32_t seed = 0; seed < 120; ++seed) {
      std::string text = hard_text(seed + 50, 1 + int(seed) * 2);
      Ids ids = t.encode(text);
      REQUIRE(ids == reference_encode(t.vocabulary(), text));
      REQUIRE(t.decode(ids) == text);
      REQUIRE(t.count(text) == int64_t(ids.size()));
    }
  }
}

TEST_CASE("random bytes come back") {
  auto t = trained();
  std::mt19937 random(3);
  for (int n = 0; n < 300; ++n) {
    std::string text;
    for (int i = 0; i < n; ++i) text += char(random());
    CHECK(t.decode(t.encode(text)) == text);
  }
}

TEST_CASE("pieces of every length, from the cache and not") {
  auto t = trained();
  for (size_t n :
       {1, 2, 14, 15, 16, 17, 31, 63, 64, 65, 127, 1023, 1024, 1025, 5000}) {
    std::string text;
    for (size_t i = 0; i < n; ++i) text += "abcxeholT"[i * i % 9];
    Ids expected = reference_encode(t.vocabulary(), text);
    CHECK(t.encode(text) == expected);
    CHECK(t.encode(text) == expected);
    CHECK(t.encode(text + " x") ==
          reference_encode(t.vocabulary(), text + " x"));
  }
}

TEST_CASE("both ways to merge a short piece do the same") {
  if (bpe::host_isa() != bpe::Isa::Avx512) {
    skip_test("this machine has no AVX-512");
    return;
  }
  auto t = trained("gpt4", 3000);
  bpe::Model model(t.vocabulary());
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    // Ids as they come up in the middle of merging too, and runs of one.
    uint32_t below = round % 3 ? 3000 : 300, run = random() % below;
    std::vector<Ids> a(size_t(round) % 40), b;
    for (Ids& ids : a) {
      ids.resize(1 + random() % bpe::kShortMerge);
      for (auto& id : ids) id = random() % 4 ? random() % below : run;
    }
    b = a;
    auto merge = [&](auto* function, std::vector<Ids>& all) {
      std::vector<bpe::ShortIds> pieces;
      for (Ids& ids : all) pieces.push_back({ids.data(), uint32_t(ids.size())});
      function(model.pairs, pieces);
      for (size_t i = 0; i < all.size(); ++i) all[i].resize(pieces[i].count);
    };
    merge(bpe::merge_short_scalar, a);
    merge(bpe::merge_short_avx512, b);
    REQUIRE(a == b);
  }
}

TEST_CASE("a pair is found among many, with full buckets too") {
  // A bucket has 16 places; ids in steps bring some to fill up.
  std::vector<bpe::Merge> merges;
  for (uint32_t i = 0; i < 60000; ++i)
    merges.push_back({i % 300, i / 300 * 4096, i + 7});
  bpe::PairTable table(merges), grown(size_t(0));
  for (uint32_t i = 0; i < merges.size(); ++i)
    grown.insert(merges[i].left, merges[i].right, i, i + 7);
  for (const bpe::PairTable* t : {&table, &grown})
    for (uint32_t i = 0; i < merges.size(); ++i) {
      auto [left, right, result] = merges[i];
      REQUIRE(t->find(left, right) == (uint64_t(i) << 32 | result));
      REQUIRE(t->find_low(left, right) == (uint64_t(i) << 32 | result));
      REQUIRE(t->find(left, right + 1) == bpe::kNoMerge);
      REQUIRE(t->find(left + 300, right) == bpe::kNoMerge);
      REQUIRE(t->find(bpe::kNone, right) == bpe::kNoMerge);
    }
}

TEST_CASE("a full cache starts over") {
  auto t = trained();
  bpe::Model model(t.vocabulary());
  bpe::PieceCache cache(model, 64);
  for (int run : {1, 2, 7, 33, 500}) {
    // Pieces that come again while they wait, and some in between that do not.
    std::string all;
    std::vector<std::string> texts;
    for (int i = 0; i < 1500; ++i) {
      int what = i % 5 == 4 ? i / 40 : i / 2;
      texts.push_back(std::to_string(what * 7919) +
                      std::string(i % 3 ? 0 : size_t(i % 90), 'a'));
    }
    uint32_t out[500 * 100];
    for (size_t i = 0; i < texts.size();) {
      Ids expected;
      cache.begin();
      uint32_t* end = out;
      for (int k = 0; k < run && i < texts.size(); ++k, ++i) {
        auto p = reinterpret_cast<const uint8_t*>(texts[i].data());
        end = cache.emit_end(p, texts[i].size(), end);
        Ids one;
        bpe::merge_piece(model, p, texts[i].size(), one);
        expected.insert(expected.end(), one.begin(), one.end());
      }
      end = cache.settle(end);
      REQUIRE(Ids(out, end) == expected);
    }
  }
}

TEST_CASE("after an error the same tokenizer encodes as before") {
  auto v = trained().vocabulary();
  std::erase_if(v.merges, [&](const bpe::Merge& m) {
    return v.tokens[m.result].find('q') != std::string::npos;
  });
  for (std::string& s : v.tokens)
    if (s.find('q') != std::string::npos) s.clear();
  auto t = Tokenizer::from(v, "test");
  std::string text = "hello wonderful world of words";
  CHECK_THROWS_AS(t.encode(text + " and q"), UserError);
  CHECK(t.encode(text) == reference_encode(v, text));
  CHECK(t.encode(text + text) == reference_encode(v, text + text));
}

TEST_CASE("a long text gives the same ids on 1 to 8 threads") {
  std::string text;
  for (uint32_t i = 0; i < 12; ++i)
    text += hard_text(i, 20000) + "<|e|>" + std::string(300000, "ab"[i % 2]);
  for (auto& pattern : {"gpt4", "o200k", "\\w+"}) {
    auto v = trained(pattern).vocabulary();
    v.added.push_back({"<|e|>", 700, true});
    auto t = Tokenizer::from(v, "test");
    for (bool specials : {false, true}) {
      Ids one = t.encode(text, {.specials = specials});
      CHECK(std::count(one.begin(), one.end(), 700u) == (specials ? 12 : 0));
      for (int threads = 2; threads <= 8; threads *= 2)
        REQUIRE(t.encode(text, {.specials = specials, .threads = threads}) ==
                one);
      CHECK(t.decode(one) == text);
    }
  }
}

TEST_CASE("long texts of characters and bytes are cut between characters") {
  std::string text;
  for (int i = 0; i < 300000; ++i) text += i % 3 ? "é" : "漢";
  for (auto& t : {Tokenizer::chars(text), Tokenizer::bytes()}) {
    Ids one = t.encode(text);
    CHECK(t.encode(text, {.threads = 4}) == one);
    CHECK(t.decode(one) == text);
  }
}

TEST_CASE("a batch is its texts, one by one") {
  auto t = trained();
  std::vector<std::string> texts;
  for (uint32_t i = 0; i < 50; ++i) texts.push_back(hard_text(i, int(i)));
  std::vector<std::string_view> views(texts.begin(), texts.end());
  for (int threads : {1, 4}) {
    auto ids = t.encode_batch(views, {.threads = threads});
    REQUIRE(ids.size() == texts.size());
    for (size_t i = 0; i < texts.size(); ++i)
      CHECK(ids[i] == t.encode(texts[i]));
  }
  CHECK(t.encode_batch({}).empty());
}

TEST_CASE("added tokens: the leftmost, of those the longest, if asked for") {
  auto v = trained().vocabulary();
  v.added = {{"<a>", 600, true}, {"<a><b>", 601, true}, {"[x]", 602, false}};
  auto t = Tokenizer::from(v, "test");
  EncodeOptions all{.specials = true};
  CHECK(t.encode("<a><b><a>", all) == Ids{601, 600});
  CHECK(t.encode("<a><[x]", all).front() == 600);
  CHECK(t.encode("[x]") == Ids{602});
  CHECK(t.decode(t.encode("h<a>i[x]", all)) == "h<a>i[x]");
  Ids plain = t.encode("<a>");
  CHECK(std::count(plain.begin(), plain.end(), 600u) == 0);
}

TEST_CASE("a run of 10^6 letters, without and with a split pattern") {
  auto t = train_bpe("aaaa aa aaaaaaaaaaaaaaaa", {.vocab = 262});
  std::string text(1000000, 'a');
  Ids ids = t.encode(text);
  CHECK(t.decode(ids) == text);
  CHECK(ids.size() < 300000);
}

TEST_CASE("normal form C where the file asks for it") {
  auto v = trained().vocabulary();
  v.nfc = true;
  auto t = Tokenizer::from(v, "test");
  CHECK(t.decode(t.encode("e\u0301\xff!")) == "\u00e9\xff!");
}

TEST_CASE("files of ids") {
  TempDir dir;
  auto text = (dir / "t").string(), ids = (dir / "t.bin").string();
  std::string content = hard_text(9, 3000);
  write_file_atomic(text, content);
  auto t = trained();
  for (IdType type : {IdType::U16, IdType::U32}) {
    int64_t n = encode_file(t, text, ids, type);
    CHECK(std::filesystem::file_size(ids) ==
          uint64_t(n) * (type == IdType::U16 ? 2 : 4));
    std::string back;
    decode_file(t, ids, type, [&](std::string_view s) { back += s; });
    CHECK(back == content);
  }
  auto none = [](std::string_view) {};
  write_file_atomic(ids, std::string("\xff\xff", 2));
  CHECK_THROWS_WITH_AS(decode_file(t, ids, IdType::U16, none),
                       doctest::Contains("65535"), UserError);
  CHECK_THROWS_AS(decode_file(t, ids, IdType::U32, none), UserError);
  CHECK(id_type("", 65536) == IdType::U16);
  CHECK(id_type("", 65537) == IdType::U32);
  CHECK_THROWS_AS(id_type("u16", 65537), UsageError);
  CHECK_THROWS_AS(id_type("i8", 10), UsageError);
}

}  // namespace
}  // namespace moec
