#include "models/moe/chronicle.h"

#include <absl/container/flat_hash_map.h>

#include <cctype>
#include <string>
#include <vector>

#include "support/error.h"
#include "support/rng.h"

namespace moec::moe {
namespace {

std::string_view trim(std::string_view s) {
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  while (!s.empty() && s.back() == ' ') s.remove_suffix(1);
  return s;
}

// Calls f for each part of `s` between separators.
template <class F>
void split(std::string_view s, std::string_view by, F f) {
  for (size_t at = 0;;) {
    size_t end = s.find(by, at);
    f(trim(s.substr(at, end - at)));
    if (end == s.npos) return;
    at = end + by.size();
  }
}

bool is_vowel(char c) {
  return std::string_view("aeiouAEIOU").find(c) != std::string_view::npos;
}

// Upper case after a full stop; "an" before a vowel.
std::string polish(const std::string& s) {
  std::string out;
  bool start = true;
  for (size_t i = 0; i < s.size(); ++i) {
    char c = s[i];
    bool word_start = i == 0 || s[i - 1] == ' ' || s[i - 1] == '\n';
    if (word_start && (c == 'a' || c == 'A') && i + 2 < s.size() &&
        s[i + 1] == ' ' && is_vowel(s[i + 2])) {
      out += start ? 'A' : c;
      out += 'n';
      start = false;
      continue;
    }
    if (start && std::isalnum(static_cast<unsigned char>(c))) {
      c = char(std::toupper(static_cast<unsigned char>(c)));
      start = false;
    }
    if (c == '.' || c == '?' || c == '!' || c == '\n') start = true;
    out += c;
  }
  return out;
}

class Writer {
 public:
  explicit Writer(uint64_t seed) : seed_(seed) {
    split(kChronicleGrammar, "\n", [&](std::string_view line) {
      if (line.empty()) return;
      auto eq = line.find(" = ");
      MOEC_CHECK(eq != line.npos, "grammar line {}", line);
      auto& rule = rules_[line.substr(0, eq)];
      split(line.substr(eq + 3), " / ",
            [&](std::string_view alternative) { rule.push_back(alternative); });
    });
  }

  std::string entry(int year) {
    kept_.clear();
    last_.clear();
    year_ = year;
    std::string s;
    expand("{entry}", s);
    return polish(s);
  }

  uint32_t draw(uint32_t below) {
    return uint32_t(uint64_t(random_word(seed_, 0, count_++)) * below >> 32);
  }

 private:
  void expand(std::string_view text, std::string& out) {
    while (!text.empty()) {
      auto open = text.find('{');
      out += text.substr(0, open);
      if (open == text.npos) return;
      auto close = text.find('}', open);
      symbol(text.substr(open + 1, close - open - 1), out);
      text.remove_prefix(close + 1);
    }
  }

  void symbol(std::string_view name, std::string& out) {
    if (name == "year") {
      out += std::to_string(year_);
      return;
    }
    if (name == "number") {
      out += std::to_string(2 + draw(draw(3) ? 19 : 398));
      return;
    }
    auto colon = name.find(':');
    if (colon != name.npos) {
      auto it = kept_.find(name);
      if (it == kept_.end()) {
        std::string value;
        symbol(name.substr(0, colon), value);
        it = kept_.emplace(name, value).first;
      }
      out += it->second;
      return;
    }
    auto rule = rules_.find(name);
    MOEC_CHECK(rule != rules_.end(), "no grammar symbol {}", name);
    // Never twice in a row, so that an entry does not repeat a sentence.
    auto size = uint32_t(rule->second.size());
    uint32_t choice = draw(size);
    auto [last, first_time] = last_.emplace(name, choice);
    if (!first_time && last->second == choice) choice = (choice + 1) % size;
    last_[name] = choice;
    expand(rule->second[choice], out);
  }

  uint64_t seed_;
  int64_t count_ = 0;
  int year_ = 0;
  absl::flat_hash_map<std::string_view, std::vector<std::string_view>> rules_;
  absl::flat_hash_map<std::string_view, std::string> kept_;
  absl::flat_hash_map<std::string_view, uint32_t> last_;
};

}  // namespace

std::string chronicle(const ChronicleOptions& o) {
  Writer writer(o.seed);
  std::string text;
  for (int year = 1; int64_t(text.size()) < o.bytes; ++year) {
    text += fmt::format("In the year {}.\n", year);
    for (uint32_t n = 3 + writer.draw(4); n > 0; --n)
      text += writer.entry(year) + "\n";
    text += '\n';
  }
  return text;
}

}  // namespace moec::moe
