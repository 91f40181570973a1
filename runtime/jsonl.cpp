#include "runtime/jsonl.h"

#include <nlohmann/json.hpp>

#include "support/error.h"
#include "support/json.h"

namespace moec {

void for_each_json_line(std::string_view text, const std::string& name,
                        const std::string& field,
                        FunctionRef<void(std::string_view)> sink) {
  for (int64_t number = 1; !text.empty(); ++number) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    auto where = fmt::format("{}:{}", name, number);
    nlohmann::json v = parse_json(line, where);
    if (!v.is_object())
      user_error("{}:0: a line must be a JSON object, not {}", where,
                 v.type_name());
    auto member = v.find(field);
    if (member == v.end())
      user_error(
          "{}:0: the object has no \"{}\"; data.field names the member that "
          "holds the text",
          where, field);
    if (!member->is_string())
      user_error("{}:0: \"{}\" is not a string but {}", where, field,
                 member->type_name());
    sink(member->get_ref<const std::string&>());
  }
}

}  // namespace moec
