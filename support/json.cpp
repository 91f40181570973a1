#include "support/json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "support/error.h"

namespace moec {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;

// Offset of the second occurrence of the key, for a duplicate's message.
int64_t second_place(std::string_view text, const std::string& key) {
  std::string quoted = json_quote(key);
  size_t first = text.find(quoted);
  size_t second = first == text.npos ? text.npos : text.find(quoted, first + 1);
  return second == text.npos ? 0 : int64_t(second);
}

}  // namespace

json parse_json(std::string_view text, const std::string& where, int64_t base) {
  std::vector<std::set<std::string>> keys;
  auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start ||
        event == json::parse_event_t::array_start) {
      if (depth >= kMaxDepth)
        user_error("{}:{}: nested deeper than {} levels", where, base,
                   kMaxDepth);
      keys.resize(size_t(depth) + 1);
    } else if (event == json::parse_event_t::object_end ||
               event == json::parse_event_t::array_end) {
      keys.resize(size_t(depth));
    } else if (event == json::parse_event_t::key) {
      auto& seen = keys.back();
      auto key = value.get<std::string>();
      if (!seen.insert(key).second)
        user_error("{}:{}: the key {} appears twice", where,
                   base + second_place(text, key), json_quote(key));
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& e) {
    // The library's text is "[json.exception...] parse error at ...: reason".
    std::string why = e.what();
    size_t at = why.find(": ");
    user_error("{}:{}: not valid JSON: {}", where,
               base + int64_t(e.byte ? e.byte - 1 : 0),
               at == why.npos ? why : why.substr(at + 2));
  }
}

std::string json_quote(std::string_view text) {
  return json(std::string(text))
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace moec
