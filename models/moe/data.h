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

// The text at `path`: a file, or the built-in one.
std::string read_text(const std::string& path);

// Tokenizer by data.tokenizer: "char" and "bpe:N" take theirs from the text.
Tokenizer make_tokenizer(const Config& config, const std::string& text);

// Sets model.vocab from the tokenizer where it is 0. A UsageError if it is
// smaller than the tokenizer's.
void resolve_vocab(Config& config, const Tokenizer& tokenizer);

// Reads and splits the data of a config, and resolves its vocabulary. A path
// that ends in .bin holds token ids (u16 if vocab <= 65536, else u32). With a
// `tokenizer` (a checkpoint's) that one encodes the text.
Corpus load_corpus(Config& config, std::optional<Tokenizer> tokenizer = {});

// Ids of one file, for eval: text through `tokenizer`, or a .bin of ids.
TokenSource load_tokens(const std::string& path, const Config& config,
                        const std::optional<Tokenizer>& tokenizer);

}  // namespace moec::moe
