#include "tokenizer/pattern.h"

#include "support/error.h"

namespace moec::bpe {
namespace {

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"

constexpr NamedPattern kPatterns[] = {
    {"gpt2", R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
             R"(|\s+(?!\S)|\s+)"},
    {"gpt4", R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3})"
             R"(| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"},
    {"cl100k", R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+)"
               R"(| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)"},
    {"llama3",
     CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
                  R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
    {"o200k",
     R"([^\r\n\p{L}\p{N}]?)" UPPER "*" LOWER "+" CONTRACTIONS
     R"(?|[^\r\n\p{L}\p{N}]?)" UPPER "+" LOWER "*" CONTRACTIONS
     R"(?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
};

}  // namespace

std::span<const NamedPattern> named_patterns() { return kPatterns; }

std::string named_pattern(std::string_view name) {
  std::string names;
  for (const NamedPattern& p : kPatterns) {
    if (p.name == name) return std::string(p.regex);
    names += fmt::format("{}{}", names.empty() ? "" : ", ", p.name);
  }
  user_error("there is no split pattern \"{}\"; the names are {}", name, names);
}

std::string pattern_regex(std::string_view s) {
  for (const NamedPattern& p : kPatterns)
    if (p.name == s) return std::string(p.regex);
  return std::string(s);
}

std::string_view pattern_name(std::string_view regex) {
  for (const NamedPattern& p : kPatterns)
    if (p.regex == regex) return p.name;
  return {};
}

}  // namespace moec::bpe
