#include "runtime/jsonl.h"

#include <nlohmann/json.hpp>

#include "support/error.h"
#include "support/json.h"

namespace moec {
namespace {

// The text of one member; `key` is the config's name for it.
const std::string& member_text(const nlohmann::json& v,
                               const std::string& where,
                               const std::string& name, const char* key) {
  auto member = v.find(name);
  if (member == v.end())
    user_error(
        "{}:0: the object has no \"{}\"; data.{} names the member that holds "
        "the text",
        where, name, key);
  if (!member->is_string())
    user_error("{}:0: \"{}\" is not a string but {}", where, name,
               member->type_name());
  return member->get_ref<const std::string&>();
}

void for_each_object(
    std::string_view text, const std::string& name,
    FunctionRef<void(const nlohmann::json&, const std::string&)> sink) {
  for (int64_t number = 1; !text.empty(); ++number) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    auto where = fmt::format("{}:{}", name, number);
    nlohmann::json v = parse_json(line, where);
    if (!v.is_object())
      user_error("{}:0: a line must be a JSON object, not {}", where,
                 v.type_name());
    sink(v, where);
  }
}

}  // namespace

void for_each_json_line(std::string_view text, const std::string& name,
                        const std::string& field,
                        FunctionRef<void(std::string_view)> sink) {
  for_each_object(text, name,
                  [&](const nlohmann::json& v, const std::string& where) {
                    sink(member_text(v, where, field, "field"));
                  });
}

void for_each_json_pair(
    std::string_view text, const std::string& name, const std::string& prompt,
    const std::string& field,
    FunctionRef<void(std::string_view, std::string_view)> sink) {
  for_each_object(text, name,
                  [&](const nlohmann::json& v, const std::string& where) {
                    sink(member_text(v, where, prompt, "prompt"),
                         member_text(v, where, field, "field"));
                  });
}

}  // namespace moec
