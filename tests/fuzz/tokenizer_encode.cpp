// Any bytes through every pattern: the block scanners cut as the plain one, the
// ids decode to the bytes, and threads change nothing.
#include "tokenizer/pattern.h"
#include "tokenizer/split.h"
#include "tokenizer/train.h"

namespace {

using namespace moec;

std::vector<uint32_t> cuts(const bpe::Splitter& s, const uint8_t* p, size_t n) {
  std::vector<uint32_t> ends(n + 64 + bpe::Splitter::kSlack);
  ends.resize(s.split(p, p + n, p + n, ends.data(), n + 64));
  return ends;
}

struct Case {
  bpe::Splitter plain, fast;
  Tokenizer tokenizer;
  explicit Case(std::string_view regex)
      : plain(std::string(regex), bpe::Isa::Scalar),
        fast(std::string(regex)),
        tokenizer(train_bpe("the tokenizer's own words: hello, hello world",
                            {.vocab = 280, .pattern = std::string(regex)})) {}
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<Case> cases = [] {
    std::vector<Case> all;
    for (const auto& p : bpe::named_patterns()) all.emplace_back(p.regex);
    return all;
  }();
  // Exactly as long as the text, so that a read beyond it is found.
  std::vector<uint8_t> text(data, data + size);
  std::string_view view(reinterpret_cast<const char*>(text.data()), size);
  for (const Case& c : cases) {
    if (cuts(c.plain, text.data(), size) != cuts(c.fast, text.data(), size))
      __builtin_trap();
    auto ids = c.tokenizer.encode(view);
    if (c.tokenizer.decode(ids) != view) __builtin_trap();
  }
  return 0;
}
