// The text that moec carries in itself to train on without any file: the
// annals of an invented coast, told year by year. Sentences come from a
// grammar with a lexicon of some thousand words; people, ships and towns keep
// their names within an entry. A pure function of seed and length.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace moec::moe {

struct ChronicleOptions {
  uint64_t seed = 1;
  int64_t bytes = 1200000;  // the text ends with the entry that reaches this
};

std::string chronicle(const ChronicleOptions& options);

// The grammar: lines "symbol = alternative / alternative". {symbol} expands;
// {symbol:x} keeps what it expanded to for the next {symbol:x} of the entry.
extern const std::string_view kChronicleGrammar;

}  // namespace moec::moe
