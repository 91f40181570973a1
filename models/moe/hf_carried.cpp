// hf.json.
#include <nlohmann/json.hpp>

#include "models/moe/hf_checkpoint.h"
#include "models/moe/hf_config.h"
#include "support/error.h"
#include "support/json.h"

namespace moec::moe {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "moec-hf-1";

bool flag(const json& doc, const char* key, const std::string& where) {
  if (!doc.contains(key) || !doc[key].is_boolean())
    user_error("{}:0: no valid \"{}\"", where, key);
  return doc[key].get<bool>();
}

}  // namespace

const std::string& HfCarried::file(const std::string& name) const {
  static const std::string none;
  auto it = files.find(name);
  return it == files.end() ? none : it->second;
}

std::string to_json(const HfCarried& c) {
  json doc = {
      {"format", kFormat},
      {"stacked_experts", c.stacked},
      {"tied_head", c.tied_head},
      {"dtype", c.dtype ? json(std::string(dtype_name(*c.dtype))) : json()},
      {"files", c.files}};
  return doc.dump(2) + "\n";
}

HfCarried parse_hf_carried(std::string_view text, const std::string& where) {
  json doc = parse_json(text, where);
  if (!doc.is_object() || !doc.contains("format") || doc["format"] != kFormat)
    user_error("{}:0: not a {} file", where, kFormat);
  HfCarried c;
  c.stacked = flag(doc, "stacked_experts", where);
  c.tied_head = flag(doc, "tied_head", where);
  if (doc.contains("dtype") && doc["dtype"].is_string())
    c.dtype = parse_dtype(doc["dtype"].get<std::string>());
  if (!doc.contains("files") || !doc["files"].is_object())
    user_error("{}:0: no valid \"files\"", where);
  for (auto& [name, content] : doc["files"].items()) {
    if (!content.is_string() || name.find('/') != name.npos || name == "..")
      user_error("{}:0: bad file {}", where, json_quote(name));
    c.files[name] = content.get<std::string>();
  }
  if (!c.files.contains("config.json"))
    user_error("{}:0: holds no config.json", where);
  return c;
}

const HfFamily& hf_family_of(const HfCarried& c) {
  return *read_hf_config(c.file("config.json"), "config.json").family;
}

std::vector<int32_t> hf_eos(const HfCarried& c) {
  for (auto name : {"generation_config.json", "config.json"})
    if (auto& text = c.file(name); !text.empty())
      return read_hf_eos(text, name);
  return {};
}

}  // namespace moec::moe
