// Training on any bytes gives the merges of the definition, on one thread and
// on two.
#include "tests/tokenizer/reference.h"

#include <numeric>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  if (size == 0 || size > 2000) return 0;
  std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  std::array<uint8_t, 256> order;
  std::iota(order.begin(), order.end(), uint8_t(0));
  bool first = data[0] & 1;
  TrainOptions o{.vocab = 330, .pattern = data[0] & 2 ? "" : "gpt4"};
  o.tie = first ? Tie::First : Tie::Raw;
  auto one = train_bpe(text, o);
  o.threads = 2;
  auto two = train_bpe(text, o);
  if (pairs_of(one) !=
          reference_train(text, one.vocabulary().pattern, 330, first, order) ||
      pairs_of(one) != pairs_of(two))
    __builtin_trap();
  return 0;
}
