#include "tokenizer/train.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "support/error.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/merge_loop.h"
#include "tokenizer/pattern.h"
#include "tokenizer/text_file.h"

namespace moec {
namespace {

// The bytes in the order of their ids.
std::array<uint8_t, 256> byte_order(Tie tie) {
  if (tie == Tie::Hf) return bpe::alphabet_order();
  std::array<uint8_t, 256> order;
  std::iota(order.begin(), order.end(), uint8_t(0));
  return order;
}

std::vector<std::pair<uint32_t, uint32_t>> seed_merges(
    const TrainOptions& o, const std::array<uint8_t, 256>& order) {
  std::vector<std::pair<uint32_t, uint32_t>> merges;
  if (!o.seed) return merges;
  const bpe::Vocabulary& v = o.seed->vocabulary();
  bool good = v.tokens.size() == 256 + v.merges.size();
  for (size_t i = 0; good && i < 256; ++i)
    good = v.tokens[i] == std::string(1, char(order[i]));
  for (size_t i = 0; good && i < v.merges.size(); ++i) {
    good = v.merges[i].result == 256 + i;
    merges.push_back({v.merges[i].left, v.merges[i].right});
  }
  if (!good)
    user_error(
        "the seed vocabulary does not number the bytes as this tie rule does, "
        "and its merges from 256 on");
  return merges;
}

Tokenizer train(const std::vector<std::string_view>& texts,
                const TrainOptions& o, std::vector<TextFile> files) {
  bpe::Vocabulary v;
  v.pattern = bpe::pattern_regex(o.pattern);
  auto order = byte_order(o.tie);
  bpe::MergeOptions m;
  m.seed = seed_merges(o, order);
  auto least = int64_t(256 + m.seed.size() + o.specials.size());
  if (o.vocab < least || o.vocab > bpe::kMaxId)
    user_error(
        "a vocabulary of {} tokens is not possible: there are {} bytes, seed "
        "and special tokens, and {} is the limit",
        o.vocab, least, bpe::kMaxId);
  for (size_t i = 0; i < 256; ++i) {
    m.byte_ids[order[i]] = uint32_t(i);
    v.tokens.emplace_back(1, char(order[i]));
  }
  m.merges = size_t(o.vocab) - 256 - o.specials.size();
  m.min_count = std::max<uint64_t>(1, o.min_count);
  m.first = o.tie == Tie::First;
  m.threads = o.threads;

  uint64_t total = 0;
  for (std::string_view t : texts) total += t.size();
  for (const std::string& s : o.specials)
    v.added.push_back({s, uint32_t(v.added.size()), true});
  if (!v.added.empty()) {
    bpe::Vocabulary alone;
    alone.added = v.added;
    bpe::check(alone, "the special tokens");
  }
  std::function<void(uint64_t)> counted;
  if (o.progress) {
    counted = [&](uint64_t at) {
      o.progress({false, double(at) / double(total), 0, 0});
    };
    m.progress = [&](size_t n, uint64_t count) {
      o.progress({true, double(n) / double(m.merges), int64_t(n), count});
    };
  }
  bpe::WordList words =
      bpe::count_words(texts, bpe::Splitter(v.pattern),
                       bpe::AddedTokens(v.added, true), o.threads, counted);
  // Their pages make room for the merges: the words hold their own text.
  files.clear();
  // The other rules do not depend on where a pair stands.
  if (m.first)
    std::sort(words.words.begin(), words.words.end(),
              [](const bpe::Word& a, const bpe::Word& b) {
                return a.first < b.first;
              });
  for (auto [left, right] : bpe::merge_words(std::move(words), m)) {
    auto id = uint32_t(v.tokens.size());
    v.tokens.push_back(v.tokens[left] + v.tokens[right]);
    v.merges.push_back({left, right, id});
  }
  for (bpe::AddedToken& a : v.added) a.id += uint32_t(v.tokens.size());
  return Tokenizer::from(std::move(v), "the trained vocabulary");
}

}  // namespace

Tie parse_tie(std::string_view name) {
  if (name == "raw") return Tie::Raw;
  if (name == "hf") return Tie::Hf;
  if (name == "first") return Tie::First;
  usage_error("there is no tie rule \"{}\"; use raw, hf or first", name);
}

Tokenizer train_bpe_files(const std::vector<std::string>& paths,
                          const TrainOptions& options) {
  std::vector<TextFile> files;
  files.reserve(paths.size());
  std::vector<std::string_view> texts;
  for (const std::string& path : paths)
    texts.push_back(files.emplace_back(path).text());
  return train(texts, options, std::move(files));
}

Tokenizer train_bpe(std::string_view text, const TrainOptions& options) {
  return train({text}, options, {});
}

Tokenizer make_tokenizer(const std::string& spec, std::string_view text,
                         int threads, const std::string& special) {
  if (spec == "char") return Tokenizer::chars(text);
  if (spec == "bytes") return Tokenizer::bytes();
  if (!spec.starts_with("bpe:")) return Tokenizer::load(spec);
  TrainOptions o;
  o.threads = threads;
  const char *begin = spec.data() + 4, *end = spec.data() + spec.size();
  auto [p, error] = std::from_chars(begin, end, o.vocab);
  if (error != std::errc() || p != end || o.vocab < 256)
    usage_error(
        "there is no tokenizer \"{}\"; use char, bytes, bpe:N with N of at "
        "least 256, or a file",
        spec);
  if (!special.empty()) o.specials = {special};
  return train_bpe(text, o);
}

}  // namespace moec
