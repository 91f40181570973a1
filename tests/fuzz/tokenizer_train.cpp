// Training on any bytes gives the merges of the definition, on one thread and,
// for some, on two.
#include "tests/tokenizer/reference.h"

#include <numeric>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  if (size == 0) return 0;
  // The definition recounts everything at each merge: 300 bytes reach all code.
  std::string text(reinterpret_cast<const char*>(data + 1),
                   std::min<size_t>(size - 1, 300));
  std::array<uint8_t, 256> order;
  std::iota(order.begin(), order.end(), uint8_t(0));
  bool first = data[0] & 1;
  TrainOptions o{.vocab = 310, .pattern = data[0] & 2 ? "" : "gpt4"};
  o.tie = first ? Tie::First : Tie::Raw;
  auto one = train_bpe(text, o);
  if (pairs_of(one) !=
      reference_train(text, one.vocabulary().pattern, 310, first, order))
    __builtin_trap();
  if (data[0] % 64 < 8) {
    o.threads = 2;
    if (pairs_of(train_bpe(text, o)) != pairs_of(one)) __builtin_trap();
  }
  return 0;
}
