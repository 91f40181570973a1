// The distinct pieces of texts and how often each occurs, counted by several
// threads over safe cuts of the text.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/model.h"

namespace moec::bpe {

struct Word {
  uint64_t first;  // offset of the first occurrence in all the text
  uint64_t count;
  uint64_t text;  // offset in WordList::texts
  uint32_t length;
};

// Pieces of at least two bytes.
struct WordList {
  std::vector<Word> words;
  std::string texts;
};

// The order of the words depends on the threads; sort by `first` for one that
// does not. Text at an added token is cut and the token is not counted.
// `progress` gets the bytes handed out so far and is called by one thread at a
// time.
WordList count_words(const std::vector<std::string_view>& texts,
                     const Splitter& splitter, const AddedTokens& added,
                     int threads,
                     const std::function<void(uint64_t)>& progress);

}  // namespace moec::bpe
