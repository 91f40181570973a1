#include "tokenizer/vocabulary.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "support/error.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/utf8.h"

namespace moec::bpe {
namespace {

void check_tokens(const Vocabulary& v, const std::string& source) {
  std::unordered_map<std::string_view, size_t> seen;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.tokens[i].empty()) continue;
    auto [at, fresh] = seen.emplace(v.tokens[i], i);
    if (!fresh)
      user_error("{}: tokens {} and {} are the same bytes \"{}\"", source,
                 at->second, i, to_alphabet(v.tokens[i]));
  }
}

void check_merges(const Vocabulary& v, const std::string& source) {
  std::unordered_set<uint64_t> seen;
  auto there = [&](uint32_t id) {
    return id < v.tokens.size() && !v.tokens[id].empty();
  };
  for (size_t i = 0; i < v.merges.size(); ++i) {
    const Merge& m = v.merges[i];
    for (uint32_t id : {m.left, m.right, m.result})
      if (!there(id))
        user_error("{}: merge {}: there is no token {}", source, i, id);
    if (v.tokens[m.left] + v.tokens[m.right] != v.tokens[m.result])
      user_error("{}: merge {}: tokens {} and {} do not make token {}", source,
                 i, m.left, m.right, m.result);
    if (!seen.insert(uint64_t(m.left) << 32 | m.right).second)
      user_error("{}: merge {}: tokens {} and {} merge twice", source, i,
                 m.left, m.right);
  }
}

void check_added(const Vocabulary& v, const std::string& source) {
  std::unordered_set<std::string_view> seen;
  std::unordered_set<uint32_t> ids;
  for (const AddedToken& a : v.added) {
    if (a.text.empty()) user_error("{}: an added token is empty", source);
    if (a.id > kMaxId)
      user_error("{}: id {} is over the limit of {}", source, a.id, kMaxId);
    if (!seen.insert(a.text).second || !ids.insert(a.id).second)
      user_error("{}: the added token {} (id {}) is there twice", source,
                 a.text, a.id);
    if (a.id < v.tokens.size() && !v.tokens[a.id].empty() &&
        v.tokens[a.id] != a.text)
      user_error("{}: the added token {} has the id {} of another token",
                 source, a.text, a.id);
  }
}

}  // namespace

int64_t Vocabulary::size() const {
  int64_t n = int64_t(tokens.size());
  while (n && tokens[n - 1].empty()) --n;
  for (const AddedToken& a : added) n = std::max(n, int64_t(a.id) + 1);
  return n;
}

void check(const Vocabulary& v, const std::string& source) {
  if (int64_t(v.tokens.size()) > kMaxId + 1)
    user_error("{}: {} ids are over the limit of {}", source, v.tokens.size(),
               kMaxId + 1);
  if (v.size() == 0) user_error("{}: there is no token at all", source);
  check_tokens(v, source);
  check_merges(v, source);
  check_added(v, source);
}

Vocabulary byte_vocabulary() {
  Vocabulary v;
  for (int b = 0; b < 256; ++b) v.tokens.emplace_back(1, char(b));
  return v;
}

Vocabulary char_vocabulary(std::string_view text) {
  std::set<int32_t> chars;
  auto begin = reinterpret_cast<const uint8_t*>(text.data());
  auto end = begin + text.size();
  for (auto p = begin; p < end;) {
    int length;
    int32_t c = decode_utf8(p, end, length);
    if (c < 0)
      user_error(
          "byte {} of the text (0x{:02x}) is no UTF-8; use the "
          "tokenizer \"bytes\"",
          p - begin, *p);
    chars.insert(c);
    p += length;
  }
  if (chars.empty()) user_error("a text without characters has no tokenizer");
  Vocabulary v;
  v.kind = Kind::Chars;
  for (int32_t c : chars) append_utf8(v.tokens.emplace_back(), uint32_t(c));
  return v;
}

}  // namespace moec::bpe
