#include "support/json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "support/error.h"

namespace moec {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;

// Offset of the second occurrence of the key, for a duplicate's message.
int64_t second_place(std::string_view text, const std::string& key) {
  std::string quoted = json_quote(key);
  size_t first = text.find(quoted);
  size_t second = first == text.npos ? text.npos : text.find(quoted, first + 1);
  return second == text.npos ? 0 : int64_t(second);
}

// Reads a text without building it and throws at the first thing that is
// refused. (The library's own callback form is quadratic in the members of an
// object.)
struct Check : nlohmann::json_sax<json> {
  std::string_view text;
  const std::string& where;
  int64_t base;
  std::vector<std::set<std::string>> keys;  // of the open objects and arrays

  Check(std::string_view t, const std::string& w, int64_t b)
      : text(t), where(w), base(b) {}

  bool open() {
    if (keys.size() >= kMaxDepth)
      user_error("{}:{}: nested deeper than {} levels", where, base, kMaxDepth);
    keys.emplace_back();
    return true;
  }
  bool close() {
    keys.pop_back();
    return true;
  }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& k) override {
    if (!keys.back().insert(k).second)
      user_error("{}:{}: the key {} appears twice", where,
                 base + second_place(text, k), json_quote(k));
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // The library's text is "[json.exception...] parse error at ...: reason".
    std::string why = e.what();
    size_t at = why.find(": ");
    user_error("{}:{}: not valid JSON: {}", where,
               base + int64_t(position ? position - 1 : 0),
               at == why.npos ? why : why.substr(at + 2));
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
};

}  // namespace

json parse_json(std::string_view text, const std::string& where, int64_t base) {
  Check check(text, where, base);
  json::sax_parse(text.begin(), text.end(), &check);
  return json::parse(text.begin(), text.end());
}

std::string json_quote(std::string_view text) {
  return json(std::string(text))
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace moec
