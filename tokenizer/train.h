// Trains byte-level BPE: count the distinct pieces of the text, then merge the
// most frequent pair again and again, exactly (Sennrich et al. 2016), touching
// only the places where it stands. Counts are 64-bit. The result depends on the
// texts and the options alone, not on the number of threads.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace moec {

// Which of equally frequent pairs goes first, and how bytes are numbered.
enum class Tie : uint8_t {
  Raw,   // the smallest (left id, right id); bytes by value (rustbpe)
  Hf,    // the same; bytes in the order of GPT-2's alphabet (HF tokenizers)
  First  // the one that stands first in the text; bytes by value (minbpe)
};

// "raw", "hf", "first"; UsageError for anything else.
Tie parse_tie(std::string_view name);

struct TrainProgress {
  bool merging;    // else counting
  double done;     // of this phase, 0 to 1
  int64_t merges;  // so far
  uint64_t count;  // of the last merged pair
};

struct TrainOptions {
  // Tokens in all: 256 bytes, merges, special tokens. Fewer where no pair is
  // left that occurs min_count times.
  int64_t vocab = 32768;
  // A pattern's name or a regular expression; "" = no splitting.
  std::string pattern = "gpt4";
  Tie tie = Tie::Raw;
  int threads = 1;
  uint64_t min_count = 1;
  // Numbered last; the text is cut at them and never merges into them.
  std::vector<std::string> specials = {};
  // Its merges come first, whatever their counts; it must number its bytes as
  // `tie` does and its merges from 256 on.
  std::optional<Tokenizer> seed = {};
  std::function<void(const TrainProgress&)> progress = {};
};

// UserError where vocab is less than 256 plus the seed's and special tokens.
// Files are mapped and read once, front to back; what stays in memory is the
// distinct pieces.
Tokenizer train_bpe_files(const std::vector<std::string>& paths,
                          const TrainOptions& options);
Tokenizer train_bpe(std::string_view text, const TrainOptions& options);

// What the config key data.tokenizer asks for: "char" and "bpe:N" learn from
// the text, "bytes" needs none, anything else is a file to load. A `special`
// token, if not empty, is one of bpe:N's.
Tokenizer make_tokenizer(const std::string& spec, std::string_view text,
                         int threads, const std::string& special = {});

}  // namespace moec
