#include "runtime/token_source.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "support/error.h"
#include "support/rng.h"

namespace moec {

struct TokenSource::Storage {
  std::vector<int32_t> ids;  // or:
  MappedFile map;
  int bytes = 0;  // of one id in the map; 0: ids
  std::string name = "tokens";

  int64_t at(int64_t i) const {
    if (bytes == 0) return ids[size_t(i)];
    const std::byte* p = map.bytes().data() + i * bytes;
    uint32_t v = 0;
    std::memcpy(&v, p, size_t(bytes));
    return v;
  }
};

TokenSource::TokenSource(std::vector<int32_t> ids) {
  auto s = std::make_shared<Storage>();
  size_ = int64_t(ids.size());
  s->ids = std::move(ids);
  storage_ = std::move(s);
}

TokenSource::TokenSource(std::shared_ptr<const Storage> storage, int64_t begin,
                         int64_t size)
    : storage_(std::move(storage)), begin_(begin), size_(size) {}

TokenSource TokenSource::from_bin(const std::filesystem::path& file,
                                  int bytes) {
  MOEC_CHECK(bytes == 2 || bytes == 4);
  auto s = std::make_shared<Storage>();
  s->map = MappedFile(file);
  s->bytes = bytes;
  s->name = file.string();
  auto size = int64_t(s->map.bytes().size());
  if (size == 0) user_error("{}:0: the file is empty", s->name);
  if (size % bytes != 0)
    user_error("{}:{}: ends within a {}-byte token id; is the type right?",
               s->name, size / bytes * bytes, bytes);
  return {std::move(s), 0, size / bytes};
}

void TokenSource::copy(int64_t begin, std::span<int32_t> out) const {
  MOEC_CHECK(begin >= 0 && begin + int64_t(out.size()) <= size_);
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = int32_t(storage_->at(begin_ + begin + int64_t(i)));
}

void TokenSource::check_vocab(int64_t vocab) const {
  for (int64_t i = begin_; i < begin_ + size_; ++i) {
    int64_t id = storage_->at(i);
    if (id < 0 || id >= vocab)
      user_error(
          "{}:{}: token id {} is outside the vocabulary of {}; the ids and "
          "the model's vocab do not belong together",
          storage_->name, i * std::max(1, storage_->bytes), id, vocab);
  }
}

TokenSource TokenSource::part(int64_t begin, int64_t size) const {
  MOEC_CHECK(begin >= 0 && size >= 0 && begin + size <= size_);
  return {storage_, begin_ + begin, size};
}

std::pair<TokenSource, TokenSource> split_tokens(const TokenSource& all,
                                                 double val_fraction) {
  if (!(val_fraction >= 0 && val_fraction < 1))
    user_error("data.val_fraction = {}: must be in [0, 1)", val_fraction);
  auto train = int64_t(std::floor(double(all.size()) * (1 - val_fraction)));
  return {all.part(0, train), all.part(train, all.size() - train)};
}

uint64_t permute(uint64_t index, uint64_t size, uint64_t key, uint64_t stream) {
  MOEC_CHECK(index < size && size <= uint64_t(1) << 62);
  int half = std::max(1, (int(std::bit_width(size - 1)) + 1) / 2);
  uint64_t mask = (uint64_t(1) << half) - 1;
  do {
    uint64_t left = index >> half, right = index & mask;
    for (uint32_t round = 0; round < 6; ++round) {
      PhiloxBlock r = philox4x32(key, {uint32_t(right), round, uint32_t(stream),
                                       uint32_t(stream >> 32)});
      left ^= r[0] & mask;
      std::swap(left, right);
    }
    index = left << half | right;
  } while (index >= size);
  return index;
}

TrainWindows::TrainWindows(TokenSource tokens, int64_t seq, uint64_t seed)
    : tokens_(std::move(tokens)), seq_(seq), seed_(seed) {
  MOEC_CHECK(seq >= 1);
  int64_t predicted = tokens_.size() - 1;
  if (predicted < seq)
    user_error(
        "the training text has {} tokens, one window of train.seq = {} needs "
        "{}; use more text or a smaller train.seq",
        tokens_.size(), seq, seq + 1);
  // Every offset below seq leaves room for as many windows, if there is room
  // for two at all.
  windows_ = std::max<int64_t>(1, (predicted - (seq - 1)) / seq);
  offsets_ = std::min(seq, predicted - windows_ * seq + 1);
}

int64_t TrainWindows::window_start(int64_t k) const {
  auto epoch = uint64_t(k / windows_), index = uint64_t(k % windows_);
  // Stream 2e holds the order of epoch e, stream 2e + 1 its offset.
  uint64_t window = permute(index, uint64_t(windows_), seed_, 2 * epoch);
  uint64_t offset =
      random_word(seed_, 2 * epoch + 1, 0) * uint64_t(offsets_) >> 32;
  return int64_t(offset) + int64_t(window) * seq_;
}

TokenBatch TrainWindows::batch(int64_t number, int64_t rows) const {
  auto n = size_t(rows * seq_);
  TokenBatch b{rows, seq_, std::vector<int32_t>(n), std::vector<int32_t>(n),
               rows * seq_};
  for (int64_t r = 0; r < rows; ++r) {
    int64_t start = window_start(number * rows + r);
    auto at = size_t(r * seq_), length = size_t(seq_);
    tokens_.copy(start, std::span(b.tokens).subspan(at, length));
    tokens_.copy(start + 1, std::span(b.targets).subspan(at, length));
  }
  return b;
}

EvalWindows::EvalWindows(TokenSource tokens, int64_t seq)
    : tokens_(std::move(tokens)), seq_(seq) {
  MOEC_CHECK(seq >= 1);
  if (tokens_.size() < 2)
    user_error("an evaluation needs at least 2 tokens of text, not {}",
               tokens_.size());
  windows_ = (tokens_.size() - 1 + seq - 1) / seq;
}

TokenBatch EvalWindows::batch(int64_t number, int64_t rows) const {
  auto n = size_t(rows * seq_);
  TokenBatch b{rows, seq_, std::vector<int32_t>(n, 0),
               std::vector<int32_t>(n, -1), 0};
  for (int64_t r = 0; r < rows; ++r) {
    int64_t start = (number * rows + r) * seq_;
    int64_t length = std::min(seq_, tokens_.size() - 1 - start);
    if (length <= 0) break;
    auto at = size_t(r * seq_), count = size_t(length);
    tokens_.copy(start, std::span(b.tokens).subspan(at, count));
    tokens_.copy(start + 1, std::span(b.targets).subspan(at, count));
    b.predicted += length;
  }
  return b;
}

}  // namespace moec
