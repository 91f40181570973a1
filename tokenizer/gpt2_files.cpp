#include <nlohmann/json.hpp>
#include <unordered_map>

#include "support/error.h"
#include "support/json.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/formats.h"

namespace moec::bpe {

Vocabulary read_gpt2(std::string_view vocab_json, std::string_view merges_txt,
                     const std::string& source) {
  Vocabulary v;
  nlohmann::json vocab = parse_json(vocab_json, source + "/vocab.json");
  if (!vocab.is_object())
    user_error("{}/vocab.json: not an object of tokens and ids", source);
  std::string bytes;
  int64_t largest = largest_id(vocab_json.size());
  for (const auto& [key, value] : vocab.items()) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() > uint64_t(largest))
      user_error("{}/vocab.json: the id of {} must be from 0 to {}", source,
                 json_quote(key), largest);
    auto id = value.get<uint32_t>();
    if (id >= v.tokens.size()) v.tokens.resize(id + 1);
    if (key.empty() || !v.tokens[id].empty())
      user_error(
          "{}/vocab.json: the token {} is empty or has the id {} of "
          "another",
          source, json_quote(key), id);
    v.tokens[id] = from_alphabet(key, bytes) ? bytes : key;
  }
  std::unordered_map<std::string_view, uint32_t> ids;
  for (uint32_t i = 0; i < v.tokens.size(); ++i)
    if (!v.tokens[i].empty()) ids.emplace(v.tokens[i], i);
  std::string_view line;
  for (int64_t number = 1; next_line(merges_txt, line); ++number) {
    if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
    size_t space = line.find(' ');
    std::string a, b;
    if (space == line.npos || !from_alphabet(line.substr(0, space), a) ||
        !from_alphabet(line.substr(space + 1), b))
      user_error("{}/merges.txt:{}: not a pair of byte-level tokens", source,
                 number);
    uint32_t id[3];
    int i = 0;
    for (const std::string& t : {a, b, a + b}) {
      auto at = ids.find(t);
      if (at == ids.end())
        user_error("{}/merges.txt:{}: {} is not in vocab.json", source, number,
                   json_quote(to_alphabet(t)));
      id[i++] = at->second;
    }
    v.merges.push_back({id[0], id[1], id[2]});
  }
  check(v, source);
  return v;
}

std::string write_gpt2_vocab(const Vocabulary& v) {
  require_plain(v, "vocab.json");
  if (v.ignore_merges)
    user_error(
        "vocab.json cannot hold a tokenizer that looks for whole pieces "
        "before it merges; save it as tokenizer.json");
  Vocabulary all = v;
  all.tokens.resize(size_t(v.size()));
  for (const AddedToken& a : v.added) all.tokens[a.id] = a.text;
  all.added.clear();
  check(all, "vocab.json");
  std::string out = "{";
  for (size_t i = 0; i < all.tokens.size(); ++i)
    if (!all.tokens[i].empty())
      out += fmt::format("{}{}: {}", out.size() > 1 ? ", " : "",
                         json_quote(to_alphabet(all.tokens[i])), i);
  return out + "}\n";
}

std::string write_gpt2_merges(const Vocabulary& v) {
  std::string out = "#version: 0.2\n";
  for (const Merge& m : v.merges)
    out += fmt::format("{} {}\n", to_alphabet(v.tokens[m.left]),
                       to_alphabet(v.tokens[m.right]));
  return out;
}

}  // namespace moec::bpe
