#include "models/moe/data.h"

#include "models/moe/chronicle.h"
#include "support/cpu.h"
#include "support/error.h"
#include "support/file.h"
#include "tokenizer/train.h"

namespace moec::moe {
namespace {

bool is_token_file(const std::string& path) { return path.ends_with(".bin"); }

TokenSource encode(const Tokenizer& t, std::string_view text,
                   const std::string& path) {
  EncodeOptions o;
  o.threads = available_cores();
  try {
    auto ids = t.encode(text, o);
    return TokenSource(std::vector<int32_t>(ids.begin(), ids.end()));
  } catch (const UserError& e) {
    user_error("{}: {}", path, e.what());
  }
}

TokenSource token_file(const std::string& path, i64 vocab) {
  auto s = TokenSource::from_bin(path, vocab <= 65536 ? 2 : 4);
  s.check_vocab(vocab);
  return s;
}

}  // namespace

std::string read_text(const std::string& path) {
  if (path == kBuiltinText) return chronicle({});
  std::string text = read_file(path);
  if (text.empty()) user_error("{}: the file is empty", path);
  return text;
}

Tokenizer make_tokenizer(const Config& config, const std::string& text) {
  return moec::make_tokenizer(config.data.tokenizer, text, available_cores());
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
  auto& path = config.data.path;
  if (path.empty())
    usage_error("no data: set data.path in the config or give --data FILE");
  if (is_token_file(path)) {
    if (!tokenizer && config.data.tokenizer.find('.') != std::string::npos)
      tokenizer = Tokenizer::load(config.data.tokenizer);
    if (tokenizer) resolve_vocab(config, *tokenizer);
    if (config.model.vocab == 0)
      usage_error(
          "{}: a file of token ids needs model.vocab or a tokenizer "
          "file as data.tokenizer",
          path);
    auto [train, val] = split_tokens(token_file(path, config.model.vocab),
                                     config.data.val_fraction);
    return {tokenizer, train, val};
  }
  std::string text = read_text(path);
  if (!tokenizer) tokenizer = make_tokenizer(config, text);
  resolve_vocab(config, *tokenizer);
  auto [train, val] =
      split_tokens(encode(*tokenizer, text, path), config.data.val_fraction);
  return {tokenizer, train, val};
}

TokenSource load_tokens(const std::string& path, const Config& config,
                        const std::optional<Tokenizer>& tokenizer) {
  if (is_token_file(path)) return token_file(path, config.model.vocab);
  if (!tokenizer)
    user_error(
        "{}: the checkpoint has no tokenizer, so the data must be a "
        ".bin file of token ids",
        path);
  return encode(*tokenizer, read_text(path), path);
}

}  // namespace moec::moe
