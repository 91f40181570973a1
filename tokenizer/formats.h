// Readers and writers of the file formats. A reader gives a vocabulary that
// check() has passed, or throws UserError naming `source`; a writer throws
// UserError where its format cannot hold the vocabulary.
#pragma once
#include <string>
#include <string_view>

#include "tokenizer/vocabulary.h"

namespace moec::bpe {

// Hugging Face tokenizer.json: models of type BPE, byte-level or by characters.
Vocabulary read_hf_json(std::string_view text, const std::string& source);
std::string write_hf_json(const Vocabulary& v);

// tiktoken: "base64 rank" lines, the rank being the id. The merges follow from
// the ranks; the pattern is not in the file, special tokens are left out.
Vocabulary read_tiktoken(std::string_view text, const std::string& pattern,
                         const std::string& source);
std::string write_tiktoken(const Vocabulary& v);

// minbpe's .model: pattern, special tokens, and the merges as id pairs; ids
// 0..255 are the bytes, merge i makes id 256 + i.
Vocabulary read_minbpe(std::string_view text, const std::string& source);
std::string write_minbpe(const Vocabulary& v);

// The seed's merges.txt: minbpe's pairs alone, pattern gpt4, nothing special;
// vocabs.txt shows the merges to people and is never read.
Vocabulary read_seed(std::string_view merges, const std::string& source);
std::string write_seed_merges(const Vocabulary& v);
std::string write_seed_vocabs(const Vocabulary& v);

// GPT-2's vocab.json and merges.txt; added tokens are ordinary ones in them.
Vocabulary read_gpt2(std::string_view vocab_json, std::string_view merges_txt,
                     const std::string& source);
std::string write_gpt2_vocab(const Vocabulary& v);
std::string write_gpt2_merges(const Vocabulary& v);

// By name, as Tokenizer::load and save say. The two folder formats have no
// place for the pattern: one other than gpt2 (seed: gpt4) stands in a
// pattern.txt of our own.
Vocabulary load_vocabulary(const std::string& path, std::string_view pattern);
void save_vocabulary(const Vocabulary& v, const std::string& path);

// Shared by the writers: UserError if v needs what only tokenizer.json holds.
void require_plain(const Vocabulary& v, const char* format);

// The next line of `text` without its end; false after the last one.
bool next_line(std::string_view& text, std::string_view& line);

}  // namespace moec::bpe
