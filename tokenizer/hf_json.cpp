// Hugging Face's tokenizer.json. Byte-level BPE is model BPE plus the ByteLevel
// pre-tokenizer and decoder, with a Split by regular expression before it;
// characters are model BPE without merges and with the decoder Fuse. What would
// change the ids and is not known here is refused, never skipped.
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "support/error.h"
#include "support/json.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/formats.h"
#include "tokenizer/pattern.h"

namespace moec::bpe {
namespace {

using Json = nlohmann::json;

struct Reader {
  const std::string& source;
  int64_t largest;  // id that may be
  Vocabulary v;
  bool byte_level = false;

  [[noreturn]] void refuse(const std::string& what) const {
    user_error("{}: {}", source, what);
  }

  const Json& field(const Json& o, const char* key) const {
    static const Json null;
    auto it = o.find(key);
    return it == o.end() ? null : *it;
  }
  std::string text(const Json& o, const char* key) const {
    const Json& j = field(o, key);
    if (!j.is_string()) refuse(fmt::format("\"{}\" must be a string", key));
    return j.get<std::string>();
  }
  bool flag(const Json& o, const char* key, bool otherwise) const {
    const Json& j = field(o, key);
    if (j.is_null()) return otherwise;
    if (!j.is_boolean())
      refuse(fmt::format("\"{}\" must be true or false", key));
    return j.get<bool>();
  }
  uint32_t id(const Json& j, const std::string& of) const {
    if (!j.is_number_unsigned() || j.get<uint64_t>() > uint64_t(largest))
      refuse(fmt::format("the id of {} must be an integer from 0 to {}",
                         json_quote(of), largest));
    return j.get<uint32_t>();
  }

  void pre_tokenizer(const Json& j) {
    if (j.is_null()) return;
    std::string type = text(j, "type");
    if (type == "Sequence") {
      const Json& list = field(j, "pretokenizers");
      if (!list.is_array()) refuse("\"pretokenizers\" must be an array");
      for (const Json& p : list) pre_tokenizer(p);
    } else if (type == "ByteLevel") {
      if (byte_level) refuse("two ByteLevel pre-tokenizers");
      byte_level = true;
      if (flag(j, "add_prefix_space", true))
        refuse("ByteLevel with add_prefix_space is not supported");
      if (flag(j, "use_regex", true)) set_pattern(named_pattern("gpt2"));
    } else if (type == "Split") {
      split(j);
    } else {
      refuse(fmt::format("the pre-tokenizer {} is not supported", type));
    }
  }

  void split(const Json& j) {
    const Json& p = field(j, "pattern");
    if (byte_level || !p.is_object() || !p.contains("Regex"))
      refuse("a Split must have a Regex and stand before ByteLevel");
    std::string how = text(j, "behavior");
    bool invert = flag(j, "invert", false);
    if (!(how == "Isolated" || (how == "Removed" && invert)))
      refuse(fmt::format("Split with behavior {} is not supported", how));
    set_pattern(text(p, "Regex"));
  }

  void set_pattern(std::string pattern) {
    if (!v.pattern.empty())
      refuse("more than one split pattern is not supported");
    v.pattern = std::move(pattern);
  }

  void normalizer(const Json& j) {
    if (j.is_null()) return;
    std::string type = text(j, "type");
    if (type == "Sequence" && field(j, "normalizers").is_array()) {
      for (const Json& n : j["normalizers"]) normalizer(n);
    } else if (type == "NFC") {
      v.nfc = true;
    } else {
      refuse(fmt::format("the normalizer {} is not supported", type));
    }
  }

  void model(const Json& m) {
    if (!m.is_object() || (m.contains("type") && text(m, "type") != "BPE"))
      refuse("only the model BPE is supported");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (const Json& j = field(m, key); !j.is_null() && j != "")
        refuse(fmt::format("\"{}\" is not supported", key));
    if (flag(m, "byte_fallback", false))
      refuse("byte_fallback (SentencePiece) is not supported");
    if (const Json& d = field(m, "dropout"); !d.is_null() && d != 0)
      refuse("\"dropout\" must be null");
    v.ignore_merges = flag(m, "ignore_merges", false);
    const Json& merges = field(m, "merges");
    if (!merges.is_array()) refuse("model.merges must be an array");
    if (!byte_level && !merges.empty())
      refuse(
          "a BPE model without the ByteLevel pre-tokenizer is not "
          "supported");
    v.kind = byte_level ? Kind::Bpe : Kind::Chars;
    vocab(field(m, "vocab"));
    std::unordered_map<std::string_view, uint32_t> ids;
    for (size_t i = 0; i < v.tokens.size(); ++i)
      if (!v.tokens[i].empty()) ids.emplace(v.tokens[i], uint32_t(i));
    size_t line = 0;
    for (const Json& j : merges) merge(j, line++, ids);
  }

  void vocab(const Json& j) {
    if (!j.is_object()) refuse("model.vocab must be an object");
    std::string bytes;
    for (const auto& [key, value] : j.items()) {
      uint32_t i = id(value, key);
      if (i >= v.tokens.size()) v.tokens.resize(i + 1);
      if (!v.tokens[i].empty())
        refuse(fmt::format("the id {} is given twice", i));
      if (v.kind == Kind::Chars || !from_alphabet(key, bytes)) bytes = key;
      if (bytes.empty()) refuse("model.vocab has an empty token");
      v.tokens[i] = bytes;
    }
  }

  void merge(const Json& j, size_t line,
             const std::unordered_map<std::string_view, uint32_t>& ids) {
    std::string parts[2];
    if (j.is_string()) {
      auto s = j.get<std::string>();
      auto at = s.find(' ');
      if (at != std::string::npos) parts[0] = s.substr(0, at);
      if (at != std::string::npos) parts[1] = s.substr(at + 1);
    } else if (j.is_array() && j.size() == 2 && j[0].is_string() &&
               j[1].is_string()) {
      parts[0] = j[0].get<std::string>();
      parts[1] = j[1].get<std::string>();
    }
    std::string bytes[2];
    uint32_t id[3];
    for (int i = 0; i < 3; ++i) {
      std::string b;
      if (i < 2) {
        if (parts[i].empty() || !from_alphabet(parts[i], bytes[i]))
          refuse(fmt::format("merge {} is no pair of byte-level tokens", line));
        b = bytes[i];
      } else {
        b = bytes[0] + bytes[1];
      }
      auto at = ids.find(b);
      if (at == ids.end())
        refuse(fmt::format("merge {}: {} is not in the vocabulary", line,
                           json_quote(to_alphabet(b))));
      id[i] = at->second;
    }
    v.merges.push_back({id[0], id[1], id[2]});
  }

  void added_tokens(const Json& list) {
    if (list.is_null()) return;
    if (!list.is_array()) refuse("added_tokens must be an array");
    for (const Json& j : list) {
      if (!j.is_object()) refuse("an added token must be an object");
      std::string content = text(j, "content");
      for (const char* key : {"single_word", "lstrip", "rstrip"})
        if (flag(j, key, false))
          refuse(fmt::format("the added token {}: {} is not supported",
                             json_quote(content), key));
      uint32_t i = id(field(j, "id"), content);
      // The vocabulary may list it too, as text and not as bytes.
      if (i < v.tokens.size()) v.tokens[i].clear();
      v.added.push_back({content, i, flag(j, "special", false)});
    }
  }
};

std::string json_tokens(const Vocabulary& v) {
  std::string out;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.tokens[i].empty()) continue;
    const std::string& t = v.tokens[i];
    out += fmt::format("{}\n      {}: {}", out.empty() ? "" : ",",
                       json_quote(v.kind == Kind::Bpe ? to_alphabet(t) : t), i);
  }
  return out;
}

std::string json_merges(const Vocabulary& v) {
  std::string out;
  for (const Merge& m : v.merges)
    out += fmt::format("{}\n      [{}, {}]", out.empty() ? "" : ",",
                       json_quote(to_alphabet(v.tokens[m.left])),
                       json_quote(to_alphabet(v.tokens[m.right])));
  return out;
}

std::string json_added(const Vocabulary& v) {
  std::string out;
  for (const AddedToken& a : v.added)
    out += fmt::format(
        "{}\n    {{\"id\": {}, \"content\": {}, \"single_word\": false, "
        "\"lstrip\": false, \"rstrip\": false, \"normalized\": false, "
        "\"special\": {}}}",
        out.empty() ? "" : ",", a.id, json_quote(a.text), a.special);
  return out;
}

std::string json_pre_tokenizer(const Vocabulary& v) {
  if (v.kind == Kind::Chars) return "null";
  std::string level = R"({"type": "ByteLevel", "add_prefix_space": false, )"
                      R"("trim_offsets": true, "use_regex": false})";
  if (v.pattern.empty()) return level;
  return fmt::format(
      R"({{"type": "Sequence", "pretokenizers": [)"
      "\n    {{\"type\": \"Split\", \"pattern\": {{\"Regex\": {}}}, "
      "\"behavior\": \"Isolated\", \"invert\": false}},\n    {}]}}",
      json_quote(v.pattern), level);
}

}  // namespace

Vocabulary read_hf_json(std::string_view text, const std::string& source) {
  Json j = parse_json(text, source);
  Reader r{source, largest_id(text.size()), {}};
  if (!j.is_object()) r.refuse("a tokenizer.json is one JSON object");
  r.normalizer(r.field(j, "normalizer"));
  r.pre_tokenizer(r.field(j, "pre_tokenizer"));
  r.model(r.field(j, "model"));
  r.added_tokens(r.field(j, "added_tokens"));
  if (const Json& p = r.field(j, "post_processor"); !p.is_null())
    r.v.post_processor = p.dump();
  check(r.v, source);
  return std::move(r.v);
}

std::string write_hf_json(const Vocabulary& v) {
  const char* decoder =
      v.kind == Kind::Chars
          ? R"({"type": "Fuse"})"
          : R"({"type": "ByteLevel", "add_prefix_space": true, )"
            R"("trim_offsets": true, "use_regex": true})";
  return fmt::format(
      R"({{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [{}],
  "normalizer": {},
  "pre_tokenizer": {},
  "post_processor": {},
  "decoder": {},
  "model": {{
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": {},
    "vocab": {{{}}},
    "merges": [{}]
  }}
}}
)",
      json_added(v), v.nfc ? R"({"type": "NFC"})" : "null",
      json_pre_tokenizer(v),
      v.post_processor.empty() ? "null" : v.post_processor, decoder,
      v.ignore_merges, json_tokens(v), json_merges(v));
}

}  // namespace moec::bpe
