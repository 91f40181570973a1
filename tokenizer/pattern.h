// The named split patterns as regular expressions (PCRE2, Oniguruma and Rust's
// fancy-regex read them alike).
#pragma once
#include <span>
#include <string>
#include <string_view>

namespace moec::bpe {

struct NamedPattern {
  std::string_view name, regex;
};

// gpt2, gpt4 (minbpe, rustbpe), cl100k (tiktoken), llama3, o200k.
std::span<const NamedPattern> named_patterns();
// The expression of a named pattern; UserError lists the names.
std::string named_pattern(std::string_view name);
// A name gives its expression, anything else is one.
std::string pattern_regex(std::string_view name_or_regex);
// The name of an expression, "" for one without.
std::string_view pattern_name(std::string_view regex);

}  // namespace moec::bpe
