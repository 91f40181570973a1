#include <array>
#include <charconv>
#include <map>
#include <unordered_map>

#include "support/error.h"
#include "tokenizer/formats.h"
#include "tokenizer/model.h"

namespace moec::bpe {
namespace {

constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

bool from_base64(std::string_view s, std::string& out) {
  static const auto value = [] {
    std::array<int8_t, 256> v;
    v.fill(-1);
    for (size_t i = 0; i < 64; ++i) v[uint8_t(kDigits[i])] = int8_t(i);
    return v;
  }();
  out.clear();
  if (s.empty() || s.size() % 4) return false;
  size_t pad = s.ends_with("==") ? 2 : s.ends_with('=') ? 1 : 0;
  for (size_t i = 0; i < s.size(); i += 4) {
    uint32_t bits = 0;
    size_t skip = i + 4 == s.size() ? pad : 0;
    for (size_t j = 0; j < 4; ++j) {
      int d = j >= 4 - skip ? 0 : value[uint8_t(s[i + j])];
      if (d < 0) return false;
      bits = bits << 6 | uint32_t(d);
    }
    for (size_t j = 0; j < 3 - skip; ++j) out += char(bits >> (16 - 8 * j));
  }
  return true;
}

void to_base64(std::string_view s, std::string& out) {
  for (size_t i = 0; i < s.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j)
      bits = bits << 8 | (i + j < s.size() ? uint8_t(s[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j)
      out += i + j > s.size() ? '=' : kDigits[bits >> (18 - 6 * j) & 63];
  }
}

// tiktoken merges any neighbours that join to a token, the lowest rank first.
// In a trained vocabulary only one pair ever meets for each token: the two
// parts that its bytes merge to by the tokens before it. Where they do not end
// as two, every way to cut the token in two tokens is a merge.
void find_merges(Vocabulary& v) {
  PairTable pairs(v.tokens.size());
  ByteIds bytes = byte_ids(v);
  std::vector<uint32_t> parts;
  std::unordered_map<std::string_view, uint32_t> ids;
  bool regular = true;
  auto add = [&](uint32_t a, uint32_t b, uint32_t id) {
    pairs.insert(a, b, uint32_t(v.merges.size()), id);
    v.merges.push_back({a, b, id});
  };
  for (uint32_t i = 0; i < v.tokens.size(); ++i) {
    const std::string& t = v.tokens[i];
    if (t.size() < 2) continue;
    parts.clear();
    bool whole = true;
    for (char c : t) {
      parts.push_back(bytes[uint8_t(c)]);
      whole = whole && parts.back() != kNone;
    }
    if (whole) merge_ids(pairs, parts);
    if (whole && parts.size() == 2 && !pairs.has(parts[0], parts[1])) {
      add(parts[0], parts[1], i);
      continue;
    }
    regular = false;
    if (ids.empty())
      for (uint32_t k = 0; k < v.tokens.size(); ++k) ids[v.tokens[k]] = k;
    for (size_t cut = 1; cut < t.size() && t.size() <= 256; ++cut) {
      auto a = ids.find(std::string_view(t).substr(0, cut));
      auto b = ids.find(std::string_view(t).substr(cut));
      if (a != ids.end() && b != ids.end() && !pairs.has(a->second, b->second))
        add(a->second, b->second, i);
    }
  }
  // tiktoken looks for the whole piece first, which only matters here.
  v.ignore_merges = !regular;
}

}  // namespace

Vocabulary read_tiktoken(std::string_view text, const std::string& pattern,
                         const std::string& source) {
  Vocabulary v;
  v.pattern = pattern;
  std::string_view line;
  std::string bytes;
  int64_t largest = largest_id(text.size());
  for (int64_t number = 1; next_line(text, line); ++number) {
    if (line.empty()) continue;
    size_t space = line.find(' ');
    uint32_t id = 0;
    const char* end = line.data() + line.size();
    bool good = space != line.npos && from_base64(line.substr(0, space), bytes);
    if (good) {
      auto [p, error] = std::from_chars(line.data() + space + 1, end, id);
      good = p == end && error == std::errc();
    }
    if (!good) user_error("{}:{}: not \"base64 rank\"", source, number);
    if (id > largest)
      user_error("{}:{}: rank {} is over the limit of {}", source, number, id,
                 largest);
    if (id >= v.tokens.size()) v.tokens.resize(id + 1);
    if (!v.tokens[id].empty())
      user_error("{}:{}: rank {} comes twice", source, number, id);
    v.tokens[id] = bytes;
  }
  check(v, source);
  find_merges(v);
  return v;
}

std::string write_tiktoken(const Vocabulary& v) {
  require_plain(v, ".tiktoken");
  std::string out;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.tokens[i].empty()) continue;
    to_base64(v.tokens[i], out);
    out += fmt::format(" {}\n", i);
  }
  // The merges must follow from the ranks, or the ids would change.
  if (read_tiktoken(out, v.pattern, "the ranks").merges != v.merges)
    user_error(
        ".tiktoken cannot hold this tokenizer: its merges are not in the order "
        "of its ids; save it as tokenizer.json");
  return out;
}

}  // namespace moec::bpe
