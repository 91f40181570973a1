// The text that a config names, as token ids.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "models/moe/config.h"
#include "runtime/token_source.h"
#include "tokenizer/tokenizer.h"

namespace moec::moe {

// data.path of the text that moec writes itself (chronicle.h).
inline constexpr std::string_view kBuiltinText = "builtin:chronicle";

struct Corpus {
  std::optional<Tokenizer> tokenizer;  // none: token ids without one
  TokenSource train, val;
};

// Tokenizer by data.tokenizer: "char" and "bpe:N" take theirs from the text of
// data.path; others open no data.
Tokenizer make_tokenizer(const Config& config);

// The id that stands between documents, by data.eos: the tokenizer's own end of
// text ("", if it has one), none ("none") or a token's text; -1: none.
i64 document_end(const DataConfig& data, const Tokenizer& tokenizer);

// Sets model.vocab from the tokenizer where it is 0. A UsageError if it is
// smaller than the tokenizer's.
void resolve_vocab(Config& config, const Tokenizer& tokenizer);

// Opens and splits the data of a config, and resolves its vocabulary. Files of
// token ids are mapped (*.npy, and *.bin: u16 if vocab <= 65536, else u32); of
// text the ids are kept. A `tokenizer` (a checkpoint's) encodes the text.
Corpus load_corpus(Config& config, std::optional<Tokenizer> tokenizer = {});

// Ids of files, for eval: text through `tokenizer`, or files of ids.
TokenSource load_tokens(const std::vector<std::string>& paths,
                        const Config& config,
                        const std::optional<Tokenizer>& tokenizer);

// Bytes of the text of all tokens but the first, which no model predicts;
// special tokens are no text.
i64 predicted_bytes(const Tokenizer& tokenizer, const TokenSource& tokens);

}  // namespace moec::moe
