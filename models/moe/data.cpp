#include "models/moe/data.h"

#include <algorithm>

#include "models/moe/data_files.h"
#include "support/cpu.h"
#include "support/error.h"
#include "tokenizer/train.h"
#include "tokenizer/vocabulary.h"

namespace moec::moe {
namespace {

bool learns_from_text(const std::string& tokenizer) {
  return tokenizer == "char" || tokenizer.starts_with("bpe:");
}

bool has_end(const DataConfig& d) { return !d.eos.empty() && d.eos != "none"; }

// Encodes documents in order, short ones together on all threads.
class Encoding {
 public:
  Encoding(const Tokenizer& t, i64 end)
      : tokenizer_(t), end_(end), ids_(t.vocab_size()) {
    options_.threads = available_cores();
  }

  void file(const DataFile& f, const DataConfig& data) {
    path_ = f.path;
    for_each_document(
        {f}, data, [&](std::string_view prompt, std::string_view text) {
          if (prompt.empty() && text.empty()) return;
          if (!prompt.empty()) {
            flush();
            separate();
            named([&] { ids_.append_unlearned(tokenizer_.encode(prompt)); });
            named([&] { ids_.append(tokenizer_.encode(text)); });
          } else if (text.size() >= kLong) {
            flush();
            encode(text);
          } else {
            waiting_.emplace_back(text);
            bytes_ += text.size();
            if (bytes_ >= kLong) flush();
          }
        });
    flush();
  }
  TokenSource finish() { return std::move(ids_).finish(); }

 private:
  static constexpr size_t kLong = 4 << 20;

  void separate() {
    auto id = uint32_t(end_);
    if (any_ && end_ >= 0) ids_.append({&id, 1});
    any_ = true;
  }
  // `work` encodes; what it complains about stands in path_.
  template <class F>
  void named(F work) {
    try {
      work();
    } catch (const UserError& e) {
      user_error("{}: {}", path_, e.what());
    }
  }
  void encode(std::string_view text) {
    separate();
    named([&] {
      tokenizer_.encode_to(
          text, [&](std::span<const uint32_t> ids) { ids_.append(ids); },
          options_);
    });
  }
  void flush() {
    if (waiting_.size() == 1) {
      encode(waiting_[0]);
    } else {
      std::vector<std::string_view> texts(waiting_.begin(), waiting_.end());
      named([&] {
        for (auto& ids : tokenizer_.encode_batch(texts, options_)) {
          separate();
          ids_.append(ids);
        }
      });
    }
    waiting_.clear();
    bytes_ = 0;
  }

  const Tokenizer& tokenizer_;
  i64 end_;
  TokenBuffer ids_;
  EncodeOptions options_;
  std::string path_;
  std::vector<std::string> waiting_;
  size_t bytes_ = 0;
  bool any_ = false;
};

TokenSource encode_files(const std::vector<DataFile>& files, const Tokenizer& t,
                         const DataConfig& data) {
  Encoding e(t, document_end(data, t));
  for (auto& f : files) e.file(f, data);
  return e.finish();
}

TokenSource map_files(const std::vector<DataFile>& files, i64 vocab) {
  std::vector<TokenSource> parts;
  for (auto& f : files) {
    parts.push_back(
        f.kind == DataKind::Npy
            ? TokenSource::from_npy(f.path)
            : TokenSource::from_bin(f.path, vocab <= 65536 ? 2 : 4));
    parts.back().check_vocab(vocab);
  }
  return TokenSource::join(parts);
}

}  // namespace

Tokenizer make_tokenizer(const Config& config) {
  auto& d = config.data;
  int threads = available_cores();
  if (!learns_from_text(d.tokenizer))
    return moec::make_tokenizer(d.tokenizer, "", threads);
  if (d.path.empty())
    usage_error(
        "model.vocab is missing, and there is no data.path to take a "
        "vocabulary from");
  auto files = find_data(d.path);
  if (files[0].is_tokens())
    usage_error(
        "{}: a file of token ids needs model.vocab or a tokenizer file as "
        "data.tokenizer",
        files[0].path);
  std::string end = has_end(d) ? d.eos : "", all;
  if (files.size() == 1 && files[0].kind == DataKind::Text && end.empty()) {
    // One text is not copied.
    std::optional<Tokenizer> t;
    for_each_document(files, d, [&](std::string_view, std::string_view text) {
      t = moec::make_tokenizer(d.tokenizer, text, threads);
    });
    return *t;
  }
  for_each_document(files, d,
                    [&](std::string_view prompt, std::string_view text) {
                      all += prompt;
                      all += text;
                      all += end;
                    });
  // "bpe:N" has the end of documents as a token of its own.
  return moec::make_tokenizer(d.tokenizer, all, threads, end);
}

i64 document_end(const DataConfig& data, const Tokenizer& tokenizer) {
  if (data.eos == "none") return -1;
  if (has_end(data)) {
    i64 id = tokenizer.token_id(data.eos);
    if (id < 0)
      usage_error(
          "data.eos = \"{}\" is no token of the tokenizer; \"none\" puts "
          "nothing between documents",
          data.eos);
    return id;
  }
  for (auto name : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"})
    for (auto& t : tokenizer.vocabulary().added)
      if (t.special && t.text == name) return t.id;
  return -1;
}

void resolve_vocab(Config& config, const Tokenizer& tokenizer) {
  i64& vocab = config.model.vocab;
  i64 have = tokenizer.vocab_size();
  if (vocab == 0) vocab = have;
  if (vocab < have)
    usage_error(
        "model.vocab = {} is smaller than the tokenizer's vocabulary of {}; "
        "leave model.vocab out to take the tokenizer's",
        vocab, have);
}

Corpus load_corpus(Config& config, std::optional<Tokenizer> tokenizer) {
  auto& d = config.data;
  if (d.path.empty())
    usage_error("no data: set data.path in the config or give --data FILE");
  auto files = find_data(d.path);
  bool ids = files[0].is_tokens();
  // Ids need no tokenizer, but samples of text do.
  bool named = d.tokenizer != "bytes" && !learns_from_text(d.tokenizer);
  if (!tokenizer && (named || !ids || config.model.vocab == 0))
    tokenizer = make_tokenizer(config);
  if (tokenizer) resolve_vocab(config, *tokenizer);
  TokenSource all = ids ? map_files(files, config.model.vocab)
                        : encode_files(files, *tokenizer, d);
  auto [train, val] = split_tokens(all, d.val_fraction);
  return {tokenizer, train, val};
}

TokenSource load_tokens(const std::vector<std::string>& paths,
                        const Config& config,
                        const std::optional<Tokenizer>& tokenizer) {
  auto files = find_data(paths);
  if (files[0].is_tokens()) return map_files(files, config.model.vocab);
  if (!tokenizer)
    user_error(
        "{}: the checkpoint has no tokenizer, so the data must be files of "
        "token ids (*.bin, *.npy)",
        files[0].path);
  return encode_files(files, *tokenizer, config.data);
}

i64 predicted_bytes(const Tokenizer& tokenizer, const TokenSource& tokens) {
  std::vector<i64> length(size_t(tokenizer.vocab_size()));
  for (size_t id = 0; id < length.size(); ++id)
    if (tokenizer.has(uint32_t(id)))
      length[id] = i64(tokenizer.token_bytes(uint32_t(id)).size());
  for (auto& t : tokenizer.vocabulary().added)
    if (t.special) length[t.id] = 0;
  i64 bytes = 0;
  std::vector<int32_t> ids(1 << 16);
  for (i64 at = 1; at < tokens.size(); at += i64(ids.size())) {
    ids.resize(size_t(std::min(i64(ids.size()), tokens.size() - at)));
    tokens.copy_targets(at, ids);  // nor prompts
    for (int32_t id : ids)
      // A model's vocabulary may be larger than its tokenizer's.
      if (size_t(id) < length.size()) bytes += length[size_t(id)];
  }
  return bytes;
}

}  // namespace moec::moe
