// BPE as its definition says, for comparison: recount everything at each merge,
// and look at every pair for the lowest rank.
#pragma once
#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/split.h"
#include "tokenizer/train.h"
#include "tokenizer/vocabulary.h"

namespace moec {

using Pairs = std::vector<std::pair<uint32_t, uint32_t>>;
using Ids = std::vector<uint32_t>;

inline std::vector<std::string> split_all(const std::string& regex,
                                          const std::string& text) {
  bpe::Splitter splitter(regex, bpe::Isa::Scalar);
  std::vector<std::string> out;
  std::vector<uint32_t> ends(text.size() + bpe::Splitter::kSlack + 64);
  auto p = reinterpret_cast<const uint8_t*>(text.data());
  size_t n = splitter.split(p, p + text.size(), p + text.size(), ends.data(),
                            text.size() + 64);
  for (size_t i = 0, at = 0; i < n; at = ends[i++])
    out.push_back(text.substr(at, ends[i] - at));
  return out;
}

inline Ids replace_pair(const Ids& ids, std::pair<uint32_t, uint32_t> pair,
                        uint32_t made) {
  Ids out;
  for (size_t i = 0; i < ids.size(); ++i) {
    bool here =
        i + 1 < ids.size() && ids[i] == pair.first && ids[i + 1] == pair.second;
    out.push_back(here ? made : ids[i]);
    i += here;
  }
  return out;
}

// The pair that each rule takes; `order` numbers the bytes.
inline Pairs reference_train(const std::string& text, const std::string& regex,
                             size_t vocab, bool first,
                             const std::array<uint8_t, 256>& order,
                             uint64_t min_count = 1) {
  std::array<uint32_t, 256> id;
  for (uint32_t i = 0; i < 256; ++i) id[order[i]] = i;
  std::vector<Ids> pieces;
  for (const std::string& s : split_all(regex, text)) {
    Ids& ids = pieces.emplace_back();
    for (char c : s) ids.push_back(id[uint8_t(c)]);
  }
  Pairs merges;
  while (256 + merges.size() < vocab) {
    std::map<std::pair<uint32_t, uint32_t>, uint64_t> counts;
    Pairs met;
    for (const Ids& ids : pieces)
      for (size_t i = 0; i + 1 < ids.size(); ++i)
        if (counts[{ids[i], ids[i + 1]}]++ == 0)
          met.push_back({ids[i], ids[i + 1]});
    if (met.empty()) break;
    // The first of the greatest: as met in the text, or by ids.
    std::pair<uint32_t, uint32_t> best;
    uint64_t most = 0;
    auto look = [&](auto& pair, uint64_t count) {
      if (count > most) best = pair, most = count;
    };
    if (first)
      for (auto& pair : met) look(pair, counts[pair]);
    else
      for (auto& [pair, count] : counts) look(pair, count);
    if (most < min_count) break;
    for (Ids& ids : pieces)
      ids = replace_pair(ids, best, uint32_t(256 + merges.size()));
    merges.push_back(best);
  }
  return merges;
}

inline Ids reference_encode(const bpe::Vocabulary& v, const std::string& text) {
  std::map<std::string, uint32_t> by_bytes;
  for (uint32_t i = 0; i < v.tokens.size(); ++i) by_bytes[v.tokens[i]] = i;
  std::map<std::pair<uint32_t, uint32_t>, size_t> ranks;
  for (size_t r = 0; r < v.merges.size(); ++r)
    ranks[{v.merges[r].left, v.merges[r].right}] = r;
  Ids out;
  for (const std::string& s : split_all(v.pattern, text)) {
    Ids ids;
    for (char c : s) ids.push_back(by_bytes[std::string(1, c)]);
    for (;;) {
      size_t best = v.merges.size(), at = 0;
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        auto r = ranks.find({ids[i], ids[i + 1]});
        if (r != ranks.end() && r->second < best) best = r->second, at = i;
      }
      if (best == v.merges.size()) break;
      ids[at] = v.merges[best].result;
      ids.erase(ids.begin() + int64_t(at) + 1);
    }
    out.insert(out.end(), ids.begin(), ids.end());
  }
  return out;
}

inline Pairs pairs_of(const Tokenizer& t) {
  Pairs out;
  for (const bpe::Merge& m : t.vocabulary().merges)
    out.push_back({m.left, m.right});
  return out;
}

}  // namespace moec
