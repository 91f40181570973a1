#include "tokenizer/formats.h"

#include "support/error.h"
#include "support/file.h"
#include "tests/test.h"
#include "tests/tokenizer/reference.h"
#include "tests/tokenizer/sample_text.h"
#include "tokenizer/pattern.h"

namespace moec {
namespace {

using doctest::Contains;

TEST_CASE("every format gives the same tokenizer back, by any way round") {
  TempDir dir;
  auto first =
      train_bpe(hard_text(2, 5000), {.vocab = 500, .pattern = "o200k"});
  std::string text = hard_text(77, 3000);
  const char* names[] = {"a.json", "b.tiktoken", "c.model", "d.seed", "folder"};
  auto path = [&](const char* n) { return (dir / n).string(); };
  for (auto from : names) {
    first.save(path(from));
    for (auto to : names) {
      CAPTURE(from);
      CAPTURE(to);
      auto pattern = [](std::string_view n) {
        return n == "b.tiktoken" ? "o200k" : "";
      };
      auto a = Tokenizer::load(path(from), pattern(from));
      a.save(path(to));
      auto b = Tokenizer::load(path(to), pattern(to));
      CHECK(b.vocabulary() == first.vocabulary());
      CHECK(b.encode(text) == first.encode(text));
    }
  }
}

TEST_CASE("Hugging Face's numbers pass through the formats that have them") {
  TempDir dir;
  auto t = train_bpe(hard_text(2, 5000), {.vocab = 500,
                                          .pattern = "gpt2",
                                          .tie = Tie::Hf,
                                          .specials = {"<|endoftext|>"}});
  std::string text = hard_text(77, 3000);
  for (auto name : {"a.json", "b.tiktoken", "folder"}) {
    auto path = (dir / name).string();
    t.save(path);
    auto u = Tokenizer::load(path, "gpt2");
    CHECK(u.encode(text) == t.encode(text));
  }
  auto json = Tokenizer::load((dir / "a.json").string());
  CHECK(json.vocabulary() == t.vocabulary());
  auto files = Tokenizer::load((dir / "folder").string());
  CHECK(files.token_id("<|endoftext|>") == 499);
  CHECK_THROWS_WITH_AS(t.save((dir / "c.model").string()),
                       Contains("numbered by value"), UserError);
  CHECK_THROWS_AS(t.save((dir / "d.seed").string()), UserError);
  CHECK_FALSE(std::filesystem::exists(dir / "c.model"));
}

TEST_CASE("minbpe's and the seed's own lines") {
  auto v = bpe::read_minbpe("minbpe v1\n\n1\n<|x|> 999\n97 97\n256 97\n", "m");
  CHECK(v.tokens[257] == "aaa");
  CHECK(v.added[0].id == 999);
  CHECK(v.pattern.empty());
  auto s = bpe::read_seed("32 116\n104 101\n256 257\n", "s");
  CHECK(s.pattern == bpe::named_pattern("gpt4"));
  CHECK(bpe::write_seed_merges(s) == "32 116\n104 101\n256 257\n");
  CHECK(bpe::write_seed_vocabs(s) ==
        "| |t|     ->  | t|        256\n"
        "|h|e|     ->  |he|        257\n"
        "| t|he|   ->  | the|      258\n");
}

TEST_CASE("a .tiktoken with ranks out of order and holes") {
  // "abc" (rank 5) is no two tokens by lower ranks: "bc" comes only after it.
  std::string file = "YQ== 0\nYg== 1\nYw== 2\nYWJj 5\nYmM= 9\n";
  auto t = Tokenizer::from(
      bpe::read_tiktoken(file, bpe::named_pattern("gpt4"), "t"), "t");
  CHECK(t.vocab_size() == 10);
  CHECK(t.encode("abc") == Ids{5});
  CHECK(t.encode("abcc") == Ids{5, 2});
  CHECK_FALSE(t.has(3));
  CHECK_THROWS_AS(t.decode(Ids{3}), UserError);
  CHECK_THROWS_WITH_AS(t.encode("abx"), Contains("0x78"), UserError);
}

TEST_CASE("readers name what is wrong and where") {
  auto tiktoken = [](std::string_view s) { bpe::read_tiktoken(s, "", "f"); };
  CHECK_THROWS_WITH_AS(tiktoken("YQ== 0\nYg== \n"), Contains("f:2"), UserError);
  for (auto bad : {"", "YQ= 0\n", "Y*== 0\n", "YQ== -1\n", "YQ== 99999999999\n",
                   "YQ== 16777216\n", "YQ== 70000\n", "YQ== 0\nYg== 0\n",
                   "YQ== 0\nYQ== 1\n", "==== 0\n", "YQ==0\n"})
    CHECK_THROWS_AS(tiktoken(bad), UserError);

  auto minbpe = [](std::string s) { bpe::read_minbpe(s, "f"); };
  std::string head = "minbpe v1\n\n0\n";
  CHECK_THROWS_WITH_AS(minbpe(head + "97 256\n"), Contains("f:4"), UserError);
  for (auto bad : {"97\n", "97 -1\n", "97 98 99\n", "4294967295 97\n",
                   "99999999999999999999 97\n", "97 98\n97 98\n"})
    CHECK_THROWS_AS(minbpe(head + bad), UserError);
  for (auto bad : {"", "minbpe v2\n", "minbpe v1\n", "minbpe v1\n\nx\n",
                   "minbpe v1\n\n4000000000\n", "minbpe v1\n\n1\n<x>\n"})
    CHECK_THROWS_AS(minbpe(bad), UserError);
  // Doubling tokens, 2^60 bytes if it were believed.
  std::string doubling = head + "97 97\n";
  for (int i = 256; i < 316; ++i) doubling += fmt::format("{0} {0}\n", i);
  CHECK_THROWS_WITH_AS(minbpe(doubling), Contains("64 MiB"), UserError);

  auto gpt2 = [](std::string_view v, std::string_view m) {
    bpe::read_gpt2(v, m, "f");
  };
  CHECK_THROWS_WITH_AS(gpt2(R"({"a": 0, "b": 1})", "a b\n"),
                       Contains("merges.txt:1"), UserError);
  for (auto bad :
       {"[]", "{\"a\": -1}", "{\"a\": 1e3}", "{\"\": 0}", "{\"a\": 70000}",
        "{\"a\": 0, \"b\": 0}", "{\"a\": 0, \"a\": 1}", "{"})
    CHECK_THROWS_AS(gpt2(bad, ""), UserError);
  CHECK_THROWS_AS(gpt2(R"({"a": 0, "aa": 1})", "a a\na a\n"), UserError);
}

std::string hf(const std::string& model, const std::string& more = "") {
  return R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},)"
         R"( "model": {"type": "BPE", )" +
         model + "}" + more + "}";
}

TEST_CASE("tokenizer.json: what would change the ids is refused") {
  auto read = [](const std::string& s) { bpe::read_hf_json(s, "f"); };
  read(hf(R"("vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"])"));
  read(hf(R"("vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]])"));
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += '[';
  const std::string bad[] = {
      "",
      "[]",
      "{}",
      "null",
      "{\"model\": {}}",
      deep,
      hf("\"vocab\": " + deep),
      hf(R"("vocab": {"a": 0}, "merges": [], "dropout": 0.1)"),
      hf(R"("vocab": {"a": 0}, "merges": [], "byte_fallback": true)"),
      hf(R"("vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>")"),
      hf(R"("vocab": {"a": 0, "a": 1}, "merges": [])"),
      hf(R"("vocab": {"a": 0, "b": 0}, "merges": [])"),
      hf(R"("vocab": {"a": -1}, "merges": [])"),
      hf(R"("vocab": {"a": 4294967296}, "merges": [])"),
      hf(R"("vocab": {"a": 18446744073709551615}, "merges": [])"),
      hf(R"("vocab": {"a": 16777216}, "merges": [])"),
      hf(R"("vocab": {"a": 0.5}, "merges": [])"),
      hf(R"("vocab": {"": 0}, "merges": [])"),
      hf(R"("vocab": [], "merges": [])"),
      hf(R"("vocab": {"a": 0}, "merges": ["a a"])"),
      hf(R"("vocab": {"a": 0, "aa": 1}, "merges": ["a a", "a a"])"),
      hf(R"("vocab": {"a": 0, "aa": 1}, "merges": ["aa a", "a a"])"),
      hf(R"("vocab": {"a": 0}, "merges": [["a"]])"),
      hf(R"("vocab": {"a": 0}, "merges": [7])"),
      hf(R"("vocab": {"a": 0}, "merges": ["a "])"),
      hf(R"("vocab": {"a": 0}, "merges": [])",
         R"(, "normalizer": {"type":"Lowercase"})"),
      hf(R"("vocab": {"a": 0}, "merges": [])",
         R"(, "added_tokens": [{"id": 1, "content": ""}])"),
      hf(R"("vocab": {"a": 0}, "merges": [])",
         R"(, "added_tokens": [{"id": 1, "content": "x", "lstrip": true}])"),
      hf(R"("vocab": {"a": 0}, "merges": [])",
         R"(, "added_tokens": [{"id": 1, "content": "x"}, {"id": 1, "content": "y"}])"),
      R"({"pre_tokenizer": {"type": "Metaspace"}, "model": {"type": "BPE"}})",
      R"({"pre_tokenizer": {"type": "ByteLevel"}, "model": {"type": "BPE"}})",
      R"({"model": {"type": "Unigram", "vocab": []}})"};
  for (const std::string& s : bad) {
    CAPTURE(s.substr(0, 120));
    CHECK_THROWS_AS(read(s), UserError);
  }
  CHECK_THROWS_WITH_AS(
      read(hf(R"("vocab": {"a": 0, "aa": 1}, "merges": ["a a", "a b"])")),
      Contains("merge 1"), UserError);
}

TEST_CASE("a file's name says its format") {
  TempDir dir;
  write_file_atomic(dir / "x.txt", "hello");
  CHECK_THROWS_AS(Tokenizer::load((dir / "x.txt").string()), UsageError);
  CHECK_THROWS_AS(Tokenizer::load((dir / "none.json").string()), UserError);
  write_file_atomic(dir / "x.tiktoken", "YQ== 0\n");
  CHECK_THROWS_WITH_AS(Tokenizer::load((dir / "x.tiktoken").string()),
                       Contains("--pattern"), UsageError);
}

TEST_CASE("characters are only for tokenizer.json") {
  TempDir dir;
  auto t = Tokenizer::chars("abc");
  for (auto name : {"a.tiktoken", "a.model", "a.seed", "a"})
    CHECK_THROWS_AS(t.save((dir / name).string()), UserError);
}

}  // namespace
}  // namespace moec
