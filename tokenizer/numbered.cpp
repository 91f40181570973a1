// The formats whose ids are numbered by rule, bytes first, then the merges in
// order: minbpe's .model and the seed's merges.txt.
#include <charconv>

#include "support/error.h"
#include "tokenizer/formats.h"
#include "tokenizer/pattern.h"
#include "tokenizer/utf8.h"

namespace moec::bpe {
namespace {

bool read_number(std::string_view s, uint32_t& n) {
  auto [p, error] = std::from_chars(s.data(), s.data() + s.size(), n);
  return error == std::errc() && p == s.data() + s.size();
}

// Tokens double with each merge at worst, so their bytes are bounded too.
constexpr size_t kMostBytes = size_t(1) << 26;

void read_pairs(std::string_view text, int64_t number, Vocabulary& v,
                const std::string& source) {
  std::string_view line;
  size_t bytes = 0;
  for (; next_line(text, line); ++number) {
    while (line.ends_with(' ')) line.remove_suffix(1);
    if (line.empty()) continue;
    size_t space = line.find(' ');
    uint32_t a, b, id = uint32_t(v.tokens.size());
    if (space == line.npos || !read_number(line.substr(0, space), a) ||
        !read_number(line.substr(space + 1), b))
      user_error("{}:{}: not a pair of ids", source, number);
    if (a >= id || b >= id)
      user_error("{}:{}: id {} is not there yet: this line makes {}", source,
                 number, std::max(a, b), id);
    bytes += v.tokens[a].size() + v.tokens[b].size();
    if (bytes > kMostBytes)
      user_error("{}:{}: the tokens take more than 64 MiB", source, number);
    v.tokens.push_back(v.tokens[a] + v.tokens[b]);
    v.merges.push_back({a, b, id});
  }
}

std::string write_pairs(const Vocabulary& v, const char* format) {
  auto refuse = [&](const char* what) {
    user_error("{} cannot hold this tokenizer: {}; save it as tokenizer.json",
               format, what);
  };
  if (v.ignore_merges) refuse("whole pieces go before merges");
  if (v.tokens.size() != 256 + v.merges.size())
    refuse("it has tokens that are neither bytes nor merges");
  for (size_t i = 0; i < 256; ++i)
    if (v.tokens[i] != std::string(1, char(i)))
      refuse("its bytes are not numbered by value");
  std::string out;
  for (size_t i = 0; i < v.merges.size(); ++i) {
    const Merge& m = v.merges[i];
    if (m.result != 256 + i) refuse("its merges are not in the order of ids");
    out += fmt::format("{} {}\n", m.left, m.right);
  }
  return out;
}

// A token for people: control characters escaped, bad bytes as U+FFFD.
std::string render(std::string_view token) {
  std::string out;
  auto p = reinterpret_cast<const uint8_t*>(token.data());
  auto end = p + token.size();
  for (int length; p < end; p += length) {
    int32_t c = decode_utf8(p, end, length);
    if (c < 0)
      append_utf8(out, 0xFFFD);
    else if (c < 0x20 || (c >= 0x7F && c < 0xA0))
      out += fmt::format("\\u{:04x}", c);
    else
      append_utf8(out, uint32_t(c));
  }
  return out;
}

}  // namespace

Vocabulary read_minbpe(std::string_view text, const std::string& source) {
  Vocabulary v = byte_vocabulary();
  std::string_view version, pattern, count, line;
  uint32_t specials;
  if (!next_line(text, version) || version != "minbpe v1")
    user_error("{}:1: not \"minbpe v1\"", source);
  if (!next_line(text, pattern))
    user_error("{}:2: the pattern is missing", source);
  v.pattern = pattern;
  if (!next_line(text, count) || !read_number(count, specials))
    user_error("{}:3: not the number of special tokens", source);
  int64_t number = 4;
  for (uint32_t i = 0; i < specials; ++i, ++number) {
    if (!next_line(text, line))
      user_error("{}:{}: {} special tokens are missing", source, number,
                 specials - i);
    size_t space = line.rfind(' ');
    uint32_t id;
    if (space == line.npos || !read_number(line.substr(space + 1), id))
      user_error("{}:{}: not \"token id\"", source, number);
    v.added.push_back({std::string(line.substr(0, space)), id, true});
  }
  read_pairs(text, number, v, source);
  check(v, source);
  return v;
}

std::string write_minbpe(const Vocabulary& v) {
  require_plain(v, "minbpe's .model");
  if (v.pattern.find('\n') != v.pattern.npos)
    user_error("minbpe's .model cannot hold a pattern of several lines");
  std::string out =
      fmt::format("minbpe v1\n{}\n{}\n", v.pattern, v.added.size());
  for (const AddedToken& a : v.added) {
    if (a.text.find_first_of("\r\n \t\v\f") != a.text.npos)
      user_error("minbpe's .model cannot hold the token \"{}\"", a.text);
    out += fmt::format("{} {}\n", a.text, a.id);
  }
  return out + write_pairs(v, "minbpe's .model");
}

Vocabulary read_seed(std::string_view merges, const std::string& source) {
  Vocabulary v = byte_vocabulary();
  v.pattern = named_pattern("gpt4");
  read_pairs(merges, 1, v, source);
  check(v, source);
  return v;
}

std::string write_seed_merges(const Vocabulary& v) {
  require_plain(v, "the seed's merges.txt");
  return write_pairs(v, "the seed's merges.txt");
}

std::string write_seed_vocabs(const Vocabulary& v) {
  std::string out;
  for (const Merge& m : v.merges)
    out += fmt::format("{:<10}{:<16}{}\n",
                       fmt::format("|{}|{}|", render(v.tokens[m.left]),
                                   render(v.tokens[m.right])),
                       fmt::format("->  |{}|", render(v.tokens[m.result])),
                       m.result);
  return out;
}

}  // namespace moec::bpe
