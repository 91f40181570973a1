// Every reader on any bytes: one clear error, or a tokenizer that encodes. The
// first byte chooses the format.
#include "support/error.h"
#include "tokenizer/formats.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  if (size == 0) return 0;
  std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    bpe::Vocabulary v;
    switch (data[0] % 5) {
      case 0: v = bpe::read_hf_json(text, "f"); break;
      case 1: v = bpe::read_tiktoken(text, "", "f"); break;
      case 2: v = bpe::read_minbpe(text, "f"); break;
      case 3: v = bpe::read_seed(text, "f"); break;
      default: {
        size_t cut = text.find('\0');
        v = bpe::read_gpt2(text.substr(0, cut),
                           cut == text.npos ? "" : text.substr(cut + 1), "f");
      }
    }
    auto t = Tokenizer::from(std::move(v), "f");
    auto again = Tokenizer::from_json(t.to_json(), "again");
    std::string sample = "a b\xff" + std::string(text.substr(0, 100));
    if (t.decode(t.encode(sample)) != sample && !t.vocabulary().nfc)
      __builtin_trap();
  } catch (const UserError&) {
  }
  return 0;
}
