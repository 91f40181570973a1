#include "tokenizer/unicode.h"

#include <cstring>
#include <map>
#include <string_view>
#include <vector>

#include "support/error.h"

namespace moec::bpe {
namespace {

ClassTable unpack() {
  std::vector<char> flat;
  flat.reserve(0x110000);
  for (const char* p = kClassRuns; *p;) {
    char c = char(*p++ - 'A');
    size_t n = 0;
    while (*p >= '0' && *p <= '9') n = n * 10 + size_t(*p++ - '0');
    flat.insert(flat.end(), n, c);
  }
  MOEC_CHECK(flat.size() == 0x110000, "{} code points", flat.size());
  ClassTable t{};
  std::map<std::string_view, uint8_t> pages;
  for (size_t i = 0; i < flat.size() / 128; ++i) {
    std::string_view page(flat.data() + i * 128, 128);
    auto [at, fresh] = pages.emplace(page, uint8_t(pages.size()));
    MOEC_CHECK(pages.size() <= 256, "too many distinct pages");
    if (fresh) std::memcpy(t.of[at->second], page.data(), 128);
    t.page[i] = at->second;
  }
  return t;
}

}  // namespace

const ClassTable& class_table() {
  static const ClassTable t = unpack();
  return t;
}

}  // namespace moec::bpe
