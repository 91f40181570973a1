// Canonical TOML of a config.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "models/moe/config_fields.h"

namespace moec::moe {
namespace {

std::string toml_string(std::string_view s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", int(c));
      continue;
    }
    out += c;
  }
  return out + '"';
}

struct ToText {
  std::string operator()(const i64* p) const { return fmt::format("{}", *p); }
  std::string operator()(const double* p) const {
    auto s = fmt::format("{}", *p);
    // TOML has no "1e-06" trouble, but tells 1 from 1.0.
    return s.find_first_of(".en") == s.npos ? s + ".0" : s;
  }
  std::string operator()(const bool* p) const { return *p ? "true" : "false"; }
  std::string operator()(const std::string* p) const { return toml_string(*p); }
  std::string operator()(const std::vector<i64>* p) const {
    return fmt::format("[{}]", fmt::join(*p, ", "));
  }
  // One is written as itself, so that old files and new ones look alike.
  std::string operator()(const std::vector<std::string>* p) const {
    if (p->size() <= 1) return toml_string(p->empty() ? "" : p->front());
    std::vector<std::string> l;
    for (auto& s : *p) l.push_back(toml_string(s));
    return fmt::format("[{}]", fmt::join(l, ", "));
  }
  std::string operator()(const Biases* p) const {
    if (*p == Biases{}) return "false";
    if (*p == Biases{true, true, true, false, true}) return "true";
    std::vector<std::string> l;
    if (p->qkv) l.push_back("\"qkv\"");
    if (p->attn_out) l.push_back("\"attn_out\"");
    if (p->ffn) l.push_back("\"ffn\"");
    if (p->router) l.push_back("\"router\"");
    if (p->head) l.push_back("\"head\"");
    return fmt::format("[{}]", fmt::join(l, ", "));
  }
  std::string operator()(const std::map<std::string, i64>* p) const {
    std::vector<std::string> l;
    for (auto& [k, v] : *p)
      l.push_back(fmt::format("{} = {}", toml_string(k), v));
    return fmt::format("{{{}}}", fmt::join(l, ", "));
  }
  std::string operator()(const std::map<std::string, std::string>* p) const {
    std::vector<std::string> l;
    for (auto& [k, v] : *p)
      l.push_back(fmt::format("{} = {}", toml_string(k), toml_string(v)));
    return fmt::format("{{{}}}", fmt::join(l, ", "));
  }
};

}  // namespace

std::string to_toml(const Config& config) {
  Config copy = config;
  std::string out;
  std::string_view section;
  for (auto& f : fields(copy)) {
    if (f.section != section) {
      if (!out.empty()) out += '\n';
      out += fmt::format("[{}]\n", f.section);
      section = f.section;
    }
    out += fmt::format("{} = {}\n", f.key, std::visit(ToText(), f.target));
  }
  return out;
}

}  // namespace moec::moe
