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

}  // namespace moec::bpe
