#include "driver/tokenizer_command.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "support/cpu.h"
#include "support/error.h"
#include "support/progress.h"
#include "tokenizer/bench.h"
#include "tokenizer/pattern.h"
#include "tokenizer/text_file.h"
#include "tokenizer/token_file.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/train.h"
#include "tokenizer/vocabulary.h"

namespace moec {
namespace {

struct Flags {
  std::string tokenizer, out, pattern, dtype;
  std::vector<std::string> files;
  int threads = 0;
  bool json = false, specials = false, count = false;

  int workers() const { return threads > 0 ? threads : available_cores(); }
  const std::string& file() const { return files[0]; }
};

constexpr const char* kFormats =
    "*.json, *.tiktoken, *.model, a folder, a folder *.seed";

void add_tokenizer(CLI::App& c, Flags& f) {
  c.add_option("tokenizer", f.tokenizer, kFormats)->required();
  c.add_option("--pattern", f.pattern,
               "Split pattern instead of the file's (a .tiktoken has none): "
               "gpt2 gpt4 cl100k llama3 o200k or a regular expression");
}
void add_file(CLI::App& c, Flags& f, const char* what) {
  c.add_option("file", f.files, what)->required()->expected(1);
}
void add_threads(CLI::App& c, Flags& f) {
  c.add_option("--threads", f.threads, "Workers (default: all cores)")
      ->check(CLI::Range(1, 1024));
}
void add_json(CLI::App& c, Flags& f) {
  c.add_flag("--json", f.json, "One JSON object as the last line of stdout");
}

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

void print(const nlohmann::ordered_json& j, bool json) {
  if (json) {
    fmt::print("{}\n", j.dump());
    return;
  }
  for (auto& [key, value] : j.items())
    fmt::print("{:14} {}\n", key,
               value.is_string() ? value.get<std::string>() : value.dump());
}

// A status line with the time that remains, ten times a second at most.
class TrainStatus {
 public:
  void operator()(const TrainProgress& p) {
    if (p.merging && ++calls_ % 128 != 0) return;
    double now = seconds();
    if (p.merging && merging_since_ == 0) merging_since_ = now;
    double spent = now - (p.merging ? merging_since_ : since_);
    std::string left =
        p.done > 0.02
            ? ", " + format_seconds(spent / p.done * (1 - p.done)) + " left"
            : "";
    line_.status(
        p.merging ? fmt::format("merge {}, count {}{}", p.merges, p.count, left)
                  : fmt::format("counting: {:.0f} %{}", p.done * 100, left));
  }
  void finish() { line_.finish(); }

 private:
  Progress line_;
  double since_ = seconds(), merging_since_ = 0;
  uint64_t calls_ = 0;
};

void train(const Flags& f, TrainOptions o, const std::string& tie,
           const std::string& seed) {
  o.tie = parse_tie(tie);
  o.threads = f.workers();
  if (!seed.empty()) o.seed = Tokenizer::load(seed, o.pattern);
  auto status = std::make_shared<TrainStatus>();
  o.progress = [status](const TrainProgress& p) { (*status)(p); };
  double start = seconds();
  Tokenizer t = train_bpe_files(f.files, o);
  status->finish();
  t.save(f.out);
  if (t.vocab_size() < o.vocab)
    fmt::print(stderr, "{} tokens: no pair is left to merge\n", t.vocab_size());
  print({{"tokenizer", f.out},
         {"tokens", t.vocab_size()},
         {"pattern", o.pattern},
         {"threads", o.threads},
         {"seconds", seconds() - start}},
        f.json);
}

void add_train(CLI::App& app) {
  auto f = std::make_shared<Flags>();
  auto o = std::make_shared<TrainOptions>();
  auto tie = std::make_shared<std::string>("raw");
  auto seed = std::make_shared<std::string>();
  auto* c = app.add_subcommand("train", "Learn a byte-level BPE from files");
  c->add_option("files", f->files, "Files of any bytes")->required();
  c->add_option("--vocab", o->vocab, "Tokens in all, the 256 bytes included")
      ->required();
  c->add_option("--out", f->out, kFormats)->required();
  c->add_option("--pattern", o->pattern,
                "gpt2 gpt4 cl100k llama3 o200k or a regular expression")
      ->capture_default_str();
  c->add_option("--tie", *tie,
                "Among equal counts: raw (smallest ids), hf (the same with "
                "HF's byte numbers), first (as minbpe)")
      ->capture_default_str();
  c->add_option("--min-count", o->min_count, "Least count of a merged pair")
      ->check(CLI::Range(1, 1 << 30));
  c->add_option("--special", o->specials, "Special tokens, numbered last");
  c->add_option("--seed-tokenizer", *seed, "Its merges come first");
  add_threads(*c, *f);
  add_json(*c, *f);
  c->callback([=] { train(*f, *o, *tie, *seed); });
}

void encode(const Flags& f) {
  auto t = Tokenizer::load(f.tokenizer, f.pattern);
  EncodeOptions options{f.specials, f.workers()};
  int64_t n;
  nlohmann::ordered_json j;
  if (f.count) {
    TextFile text(f.file());
    n = t.count(text.text(), options);
  } else if (f.out.empty()) {
    usage_error("--out FILE.bin is missing (or --count for the number alone)");
  } else {
    IdType type = id_type(f.dtype, t.vocab_size());
    n = encode_file(t, f.file(), f.out, type, options);
    j["out"] = f.out;
    j["dtype"] = type == IdType::U16 ? "u16" : "u32";
  }
  j["tokens"] = n;
  print(j, f.json);
}

void add_encode(CLI::App& app) {
  auto f = std::make_shared<Flags>();
  auto* c = app.add_subcommand("encode", "Text to a file of token ids");
  add_tokenizer(*c, *f);
  add_file(*c, *f, "Text (any bytes)");
  c->add_option("--out", f->out, "Ids, headerless little-endian");
  c->add_option("--dtype", f->dtype,
                "u16 or u32 (default: u16 up to 65536 tokens)");
  c->add_flag("--specials", f->specials,
              "Special tokens written in the text become their ids");
  c->add_flag("--count", f->count, "Only say how many ids there are");
  add_threads(*c, *f);
  add_json(*c, *f);
  c->callback([f] { encode(*f); });
}

void add_decode(CLI::App& app) {
  auto f = std::make_shared<Flags>();
  auto* c = app.add_subcommand("decode", "A file of ids to bytes on stdout");
  add_tokenizer(*c, *f);
  add_file(*c, *f, "Ids");
  c->add_option("--dtype", f->dtype, "u16 or u32 of the ids");
  c->callback([f] {
    // Which pattern cut the text does not matter for the bytes of ids.
    auto t = Tokenizer::load(
        f->tokenizer, f->pattern.empty() && f->tokenizer.ends_with(".tiktoken")
                          ? "gpt4"
                          : f->pattern);
    decode_file(t, f->file(), id_type(f->dtype, t.vocab_size()),
                [](std::string_view bytes) {
                  if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) !=
                      bytes.size())
                    user_error("cannot write to stdout");
                });
  });
}

void add_convert(CLI::App& app) {
  auto f = std::make_shared<Flags>();
  auto* c = app.add_subcommand("convert", "From one format to another");
  add_tokenizer(*c, *f);
  c->add_option("out", f->out, kFormats)->required();
  c->callback([f] { Tokenizer::load(f->tokenizer, f->pattern).save(f->out); });
}

void inspect(const Flags& f) {
  auto t = Tokenizer::load(f.tokenizer, f.pattern);
  const bpe::Vocabulary& v = t.vocabulary();
  int64_t tokens = 0, bytes = 0, longest = 0;
  for (int64_t i = 0; i < t.vocab_size(); ++i) {
    if (!t.has(uint32_t(i))) continue;
    auto n = int64_t(t.token_bytes(uint32_t(i)).size());
    ++tokens;
    bytes += n;
    longest = std::max(longest, n);
  }
  auto name = bpe::pattern_name(v.pattern);
  nlohmann::ordered_json specials = nlohmann::ordered_json::object();
  for (const bpe::AddedToken& a : v.added) specials[a.text] = a.id;
  print({{"tokenizer", f.tokenizer},
         {"kind", v.kind == bpe::Kind::Chars ? "char"
                  : v.merges.empty()         ? "bytes"
                                             : "bpe"},
         {"vocab", t.vocab_size()},
         {"tokens", tokens},
         {"merges", int64_t(v.merges.size())},
         {"pattern", name.empty() ? v.pattern : std::string(name)},
         {"mean_bytes", double(bytes) / double(std::max<int64_t>(1, tokens))},
         {"longest_bytes", longest},
         {"added", specials}},
        f.json);
}

void add_inspect(CLI::App& app) {
  auto f = std::make_shared<Flags>();
  auto* c = app.add_subcommand("inspect", "What a tokenizer file holds");
  add_tokenizer(*c, *f);
  add_json(*c, *f);
  c->callback([f] { inspect(*f); });
}

}  // namespace

void add_tokenizer_commands(CLI::App& app) {
  auto* c = app.add_subcommand("tokenizer", "Train, use, convert tokenizers");
  c->require_subcommand(1);
  add_train(*c);
  add_encode(*c);
  add_decode(*c);
  add_convert(*c);
  add_inspect(*c);
}

void add_bench_tokenizer(CLI::App& bench) {
  auto f = std::make_shared<Flags>();
  auto* c = bench.add_subcommand("tokenizer", "Encoding, cold and warm");
  add_tokenizer(*c, *f);
  add_file(*c, *f, "Text");
  add_threads(*c, *f);
  add_json(*c, *f);
  c->callback([f] {
    auto t = Tokenizer::load(f->tokenizer, f->pattern);
    TokenizerSpeed s = bench_tokenizer(t, read_file(f->file()), f->workers());
    print({{"tokenizer", f->tokenizer},
           {"threads", f->workers()},
           {"cold_mb_per_s", s.cold},
           {"warm_mb_per_s", s.warm},
           {"cold_mb_per_cpu_s", s.cold_cpu},
           {"warm_mb_per_cpu_s", s.warm_cpu},
           {"tokens", s.tokens}},
          f->json);
  });
}

}  // namespace moec
