// Strict JSON on top of nlohmann::json.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moec {

// The value of a whole text. Besides what JSON itself forbids, these are
// errors: a key twice in one object, nesting deeper than 64, bytes that are
// not UTF-8. The UserError is `where:offset: reason`, the offset in bytes from
// the text's start plus `base`.
nlohmann::json parse_json(std::string_view text, const std::string& where,
                          int64_t base = 0);

// The text as a JSON string, quotes included; invalid UTF-8 becomes U+FFFD.
std::string json_quote(std::string_view text);

}  // namespace moec
