#include "tokenizer/model.h"

#include <algorithm>

#include "tokenizer/utf8.h"

namespace moec::bpe {

ByteIds byte_ids(const Vocabulary& v) {
  ByteIds ids;
  ids.fill(kNone);
  for (uint32_t i = 0; i < v.tokens.size(); ++i)
    if (v.tokens[i].size() == 1) ids[uint8_t(v.tokens[i][0])] = i;
  return ids;
}

AddedTokens::AddedTokens(const std::vector<AddedToken>& added, bool specials) {
  for (const AddedToken& a : added) {
    if (a.special && !specials) continue;
    if (nodes_.empty()) nodes_.emplace_back();
    first_[uint8_t(a.text[0])] = true;
    uint32_t at = 0;
    for (char c : a.text) {
      auto [next, fresh] =
          nodes_[at].next.emplace(uint8_t(c), uint32_t(nodes_.size()));
      at = next->second;
      if (fresh) nodes_.emplace_back();
    }
    nodes_[at].id = a.id;
  }
}

AddedTokens::Match AddedTokens::find(std::string_view text, size_t from) const {
  for (size_t i = from; i < text.size() && !empty(); ++i) {
    if (!first_[uint8_t(text[i])]) continue;
    Match best{i, i, kNone};
    uint32_t at = 0;
    for (size_t j = i; j < text.size(); ++j) {
      auto next = nodes_[at].next.find(uint8_t(text[j]));
      if (next == nodes_[at].next.end()) break;
      at = next->second;
      if (nodes_[at].id != kNone) best = {i, j + 1, nodes_[at].id};
    }
    if (best.id != kNone) return best;
  }
  return {text.size(), text.size(), kNone};
}

Model::Model(Vocabulary v)
    : vocabulary(std::move(v)),
      splitter(vocabulary.kind == Kind::Chars || vocabulary.merges.empty()
                   ? Splitter::units()
                   : Splitter(vocabulary.pattern)),
      pairs(vocabulary.merges),
      byte_ids(bpe::byte_ids(vocabulary)),
      plain_added(vocabulary.added, false),
      all_added(vocabulary.added, true) {
  const auto& tokens = vocabulary.tokens;
  bytes.resize(size_t(vocabulary.size()));
  for (uint32_t i = 0; i < bytes.size() && i < tokens.size(); ++i) {
    const std::string& t = tokens[i];
    bytes[i] = t;
    if (vocabulary.kind == Kind::Chars && !t.empty()) {
      auto p = reinterpret_cast<const uint8_t*>(t.data());
      int length;
      int32_t c = decode_utf8(p, p + t.size(), length);
      if (c < 0 || size_t(length) != t.size()) continue;
      if (size_t(c) >= char_ids.size()) char_ids.resize(size_t(c) + 1, kNone);
      char_ids[size_t(c)] = i;
    }
  }
  ids.reserve(bytes.size());
  for (uint32_t i = 0; i < bytes.size(); ++i)
    if (!bytes[i].empty()) ids.emplace(bytes[i], i);
  for (const AddedToken& a : vocabulary.added) bytes[a.id] = a.text;
}

}  // namespace moec::bpe
