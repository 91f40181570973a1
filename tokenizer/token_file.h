// Files of token ids: headerless, little-endian, 16 or 32 bits an id. Training
// maps them as they are.
#pragma once
#include <cstdint>
#include <string>

#include "support/function_ref.h"
#include "tokenizer/tokenizer.h"

namespace moec {

enum class IdType : uint8_t { U16, U32 };

// "u16" or "u32"; "" = u16 where every id of the vocabulary fits. UsageError
// for anything else, and for u16 with more than 65536 tokens.
IdType id_type(const std::string& name, int64_t vocab);

// Encodes the text file into `out`; returns the number of ids.
int64_t encode_file(const Tokenizer& tokenizer, const std::string& text_path,
                    const std::string& out, IdType type,
                    const EncodeOptions& options = {});

// Passes the bytes of the ids to `sink`, part by part. UserError naming the
// file and the place of an id that is no token.
void decode_file(const Tokenizer& tokenizer, const std::string& ids_path,
                 IdType type, FunctionRef<void(std::string_view)> sink);

}  // namespace moec
