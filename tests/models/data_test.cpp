// The data of a config: files, patterns, documents, and runs over them.
#include "models/moe/data.h"

#include <algorithm>

#include "models/moe/data_files.h"
#include "models/moe/trainer.h"
#include "support/error.h"
#include "support/file.h"
#include "tests/models/small.h"
#include "tests/test.h"
#include "tokenizer/train.h"

namespace moec::moe {
namespace {

std::string complaint(const std::function<void()>& work) {
  try {
    work();
  } catch (const UserError& e) {
    return e.what();
  }
  return {};
}

bool has(const std::string& text, std::string_view part) {
  CAPTURE(text);
  return text.find(part) != text.npos;
}

std::vector<int32_t> all_of(const TokenSource& t) {
  std::vector<int32_t> ids(size_t(t.size()));
  t.copy(0, ids);
  return ids;
}

struct Files {
  TempDir dir;
  std::string put(const std::string& name, const std::string& text) {
    write_file_atomic(dir / name, text);
    return (dir / name).string();
  }
  // Ids of the data of a config with these settings, and its tokenizer.
  std::pair<std::vector<int32_t>, std::optional<Tokenizer>> load(
      const std::vector<std::string>& path, std::vector<std::string> set = {}) {
    set.insert(set.end(), {"model.vocab=0", "data.val_fraction=0"});
    Config c = small_config(set);
    c.data.path = path;
    auto corpus = load_corpus(c);
    return {all_of(corpus.train), corpus.tokenizer};
  }
  std::string error(const std::vector<std::string>& path,
                    const std::vector<std::string>& set = {}) {
    return complaint([&] { load(path, set); });
  }
};

std::string text_of(const Tokenizer& t, const std::vector<int32_t>& ids) {
  return t.decode(std::vector<uint32_t>(ids.begin(), ids.end()));
}

std::vector<int32_t> bytes(std::string_view text) {
  return {text.begin(), text.end()};
}

TEST_CASE_FIXTURE(Files, "files, patterns and lists, in order") {
  auto a = put("a.txt", "alpha"), b = put("b.txt", "beta");
  put("c.txt", "gamma");
  auto star = (dir / "*.txt").string();
  std::vector<std::string> set = {"data.tokenizer=bytes"};
  CHECK(load({star}, set).first == bytes("alphabetagamma"));
  CHECK(load({b, a}, set).first == bytes("betaalpha"));
  CHECK(load({b, (dir / "[ac].txt").string()}, set).first ==
        bytes("betaalphagamma"));
  // A file whose name looks like a pattern is itself.
  auto odd = put("[c].md", "delta");
  CHECK(load({odd}, set).first == bytes("delta"));
  // The characters of all files are the vocabulary.
  auto [ids, tokenizer] = load({star});
  CHECK(text_of(*tokenizer, ids) == "alphabetagamma");
  Config c = small_config({"data.path=[\"a\", \"b\"]"});
  CHECK(c.data.path == std::vector<std::string>{"a", "b"});
  CHECK(parse_config(to_toml(c), "again").data.path == c.data.path);
}

TEST_CASE_FIXTURE(Files, "documents are separated as data.eos says") {
  auto a = put("a.jsonl",
               "{\"text\": \"ab\"}\n{\"text\": \"\"}\n{\"text\": \"cd\"}\n");
  auto b = put("b.txt", "ef");
  std::vector<std::string> set = {"data.tokenizer=bytes"};
  CHECK(load({a, b}, set).first == bytes("abcdef"));
  set.push_back("data.eos=;");
  CHECK(load({a, b}, set).first == bytes("ab;cd;ef"));
  CHECK(load({b}, set).first == bytes("ef"));
  // Learnt tokenizers have what separates, too.
  auto [chars, char_tokenizer] = load({a, b}, {"data.eos=;"});
  CHECK(text_of(*char_tokenizer, chars) == "ab;cd;ef");
  auto [ids, bpe] =
      load({a, b}, {"data.eos=<|end|>", "data.tokenizer=bpe:258"});
  CHECK(std::ranges::count(ids, int32_t(bpe->token_id("<|end|>"))) == 2);
  CHECK(text_of(*bpe, ids) == "ab<|end|>cd<|end|>ef");
  CHECK(predicted_bytes(*bpe, TokenSource(ids)) ==
        6 - i64(bpe->token_bytes(uint32_t(ids[0])).size()));
  CHECK(has(error({b}, {"data.tokenizer=bytes", "data.eos=<|end|>"}),
            "data.eos = \"<|end|>\" is no token"));
  auto other = put("c.jsonl", "{\"body\": \"x\"}\n");
  CHECK(load({other}, {"data.tokenizer=bytes", "data.field=body"}).first ==
        bytes("x"));
}

TEST_CASE_FIXTURE(Files, "a tokenizer's own end of text stands by itself") {
  moec::TrainOptions o;
  o.vocab = 260;
  o.specials = {"<|x|>", "<|endoftext|>"};
  auto file = (dir / "t.json").string();
  auto t = train_bpe("abababab", o);
  t.save(file);
  auto a = put("a.txt", "ab"), b = put("b.txt", "<|endoftext|>");
  std::vector<std::string> set = {"data.tokenizer=" + file};
  auto ids = load({a, b}, set).first;
  // Written out in a text it is text.
  auto end = int32_t(t.token_id("<|endoftext|>"));
  CHECK(std::ranges::count(ids, end) == 1);
  CHECK(text_of(t, ids) == "ab<|endoftext|><|endoftext|>");
  set.push_back("data.eos=none");
  CHECK(std::ranges::count(load({a, b}, set).first, end) == 0);
  set.back() = "data.eos=<|x|>";
  CHECK(std::ranges::count(load({a, b}, set).first,
                           int32_t(t.token_id("<|x|>"))) == 1);
}

TEST_CASE_FIXTURE(Files, "many short documents come out in order") {
  std::string lines, want;
  for (int i = 0; i < 3000; ++i) {
    lines += "{\"text\": \"document " + std::to_string(i) + "\"}\n";
    want += (i ? ";" : "") + ("document " + std::to_string(i));
  }
  auto ids =
      load({put("a.jsonl", lines)}, {"data.tokenizer=bytes", "data.eos=;"})
          .first;
  CHECK(ids == bytes(want));
}

TEST_CASE_FIXTURE(Files, "token files: bin and npy, mapped and joined") {
  auto bin = put("a.bin", std::string("\x01\0\x02\0", 4));
  std::string header =
      "{'descr': '<i4', 'fortran_order': False, 'shape': (2,)}\n";
  auto npy =
      put("b.npy", std::string("\x93NUMPY\x01\0", 8) + char(header.size()) +
                       '\0' + header + std::string("\x03\0\0\0\x04\0\0\0", 8));
  Config c = small_config({"data.val_fraction=0.25"});
  c.data.path = {bin, npy};
  auto corpus = load_corpus(c);
  CHECK(!corpus.tokenizer);
  CHECK(all_of(corpus.train) == std::vector<int32_t>{1, 2, 3});
  CHECK(all_of(corpus.val) == std::vector<int32_t>{4});
  auto eval = load_tokens({npy, bin}, c, {});
  CHECK(all_of(eval) == std::vector<int32_t>{3, 4, 1, 2});
  // The vocabulary is not in the files.
  CHECK(has(error({npy}), "b.npy: a file of token ids needs model.vocab"));
}

TEST_CASE_FIXTURE(Files, "data that is wrong is one clear error") {
  auto text = put("a.txt", "abc"), empty = put("e.txt", "");
  auto bin = put("a.bin", std::string("\x01\0", 2));
  CHECK(has(error({text, bin}), "a.txt and"));
  CHECK(has(error({text, bin}), "mixes files of token ids with text"));
  CHECK(has(error({(dir / "*.md").string()}), "*.md: no file matches"));
  CHECK(has(error({(dir / "none.txt").string()}), "none.txt"));
  CHECK(has(error({dir.path().string()}), "is a folder; name its files"));
  CHECK(has(error({text, empty}), "e.txt: the file is empty"));
  CHECK(has(error({put("b.jsonl", "{\"text\": \"a\"}\n{\"text\": 1}\n")}),
            "b.jsonl:2:0: \"text\" is not a string"));
  CHECK(has(error({put("c.jsonl", "{\"text\": \"a\"\n")}), "c.jsonl:1:12"));
  // What the checkpoint's characters lack, by file.
  Config c = small_config();
  CHECK(has(complaint([&] {
              load_tokens({text, put("x.txt", "xyz")}, c,
                          Tokenizer::chars("abc"));
            }),
            "x.txt"));
  CHECK(has(complaint([&] { load_tokens({text}, c, {}); }), "no tokenizer"));
}

// The cursor is the number of a batch, whatever the files.
TEST_CASE_FIXTURE(Files, "a run over many files resumes to the same bits") {
  for (int i = 0; i < 4; ++i) {
    std::string lines;
    for (int line = 0; line < 6; ++line) {
      std::string letters;
      for (int32_t id : random_ids(15 + line, 10, uint64_t(100 * i + line)))
        letters += char('a' + id);
      lines += "{\"text\": \"" + letters + "\"}\n";
    }
    put("part-" + std::to_string(i) + ".jsonl", lines);
  }
  auto run = [&](const std::string& out, i64 steps, bool resume) {
    TrainOptions o;
    o.config = small_config({"data.eos=;", "train.save_every=3",
                             "train.steps=" + std::to_string(steps)});
    o.config.data.path = {(dir / "part-*.jsonl").string()};
    o.engine = engine_options(o.config);
    o.engine.threads = 1;
    o.out = dir / out;
    o.resume = resume;
    train(o);
  };
  // Of 12 tokens a step: more than an epoch.
  run("whole", 40, false);
  run("part", 17, false);
  run("part", 40, true);
  for (auto name :
       {"model.safetensors", "optimizer.safetensors", "manifest.json"})
    CHECK(read_file(dir / "whole/step-40" / name) ==
          read_file(dir / "part/step-40" / name));
}

TEST_CASE("prompts are read and not learned") {
  Files f;
  auto path = f.put("a.jsonl",
                    "{\"q\": \"ab\", \"a\": \"cd\"}\n"
                    "{\"q\": \"\", \"a\": \"e\"}\n"
                    "{\"q\": \"ba\", \"a\": \"dc\"}\n");
  Config c = small_config({"model.vocab=0", "data.val_fraction=0",
                           "data.prompt=q", "data.field=a"});
  c.data.path = {path};
  auto corpus = load_corpus(c);
  CHECK(text_of(*corpus.tokenizer, all_of(corpus.train)) == "abcdebadc");
  EvalWindows windows(corpus.train, 5);
  auto first = windows.batch(0, 2);
  CHECK(first.tokens == std::vector<int32_t>{0, 1, 2, 3, 4, 1, 0, 3, 0, 0});
  CHECK(first.targets ==
        std::vector<int32_t>{-1, 2, 3, 4, -1, -1, 3, 2, -1, -1});
  CHECK(first.predicted == 5);
  CHECK(has(f.error({path}, {"data.prompt=p", "data.field=a"}),
            "data.prompt names"));
  CHECK(has(f.error({f.put("b.txt", "abc")}, {"data.prompt=q"}),
            "only JSON lines have a data.prompt"));
}

}  // namespace
}  // namespace moec::moe
