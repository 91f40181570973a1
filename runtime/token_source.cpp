#include "runtime/token_source.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "runtime/npy.h"
#include "support/error.h"
#include "support/rng.h"

namespace moec {

struct TokenSource::Storage {
  std::vector<int32_t> wide;  // or:
  std::vector<uint16_t> narrow;
  MappedFile map;
  const std::byte* data = nullptr;  // of whichever holds the ids
  int bytes = 4;                    // of one id
  bool is_signed = false;
  bool marked = false;  // negative ids are ones not to be learned
  int64_t offset = 0;   // of the ids in the file
  std::string name = "tokens";

  // Calls fn(ids) with the ids read as their own type.
  template <class F>
  void visit(F fn) const {
    switch (bytes) {
      case 1: return is_signed ? fn(Ids<int8_t>{data}) : fn(Ids<uint8_t>{data});
      case 2:
        return is_signed ? fn(Ids<int16_t>{data}) : fn(Ids<uint16_t>{data});
      case 4:
        return is_signed ? fn(Ids<int32_t>{data}) : fn(Ids<uint32_t>{data});
      default:
        return is_signed ? fn(Ids<int64_t>{data}) : fn(Ids<uint64_t>{data});
    }
  }

  // A map's ids may stand at any address.
  template <class T>
  struct Ids {
    const std::byte* data;
    T operator[](int64_t i) const {
      T v;
      std::memcpy(&v, data + i * int64_t(sizeof v), sizeof v);
      return v;
    }
  };
};

void TokenSource::add(std::shared_ptr<const Storage> storage, int64_t begin,
                      int64_t size) {
  if (size == 0) return;
  size_ += size;
  pieces_.push_back({std::move(storage), begin, size, size_});
}

TokenSource::TokenSource(std::vector<int32_t> ids) {
  auto s = std::make_shared<Storage>();
  auto size = int64_t(ids.size());
  s->wide = std::move(ids);
  s->data = reinterpret_cast<const std::byte*>(s->wide.data());
  s->is_signed = true;
  add(std::move(s), 0, size);
}

TokenSource TokenSource::from_bin(const std::filesystem::path& file,
                                  int bytes) {
  MOEC_CHECK(bytes == 2 || bytes == 4);
  auto s = std::make_shared<Storage>();
  s->map = MappedFile(file);
  s->data = s->map.bytes().data();
  s->bytes = bytes;
  s->name = file.string();
  auto size = int64_t(s->map.bytes().size());
  if (size == 0) user_error("{}:0: the file is empty", s->name);
  if (size % bytes != 0)
    user_error("{}:{}: ends within a {}-byte token id; is the type right?",
               s->name, size / bytes * bytes, bytes);
  TokenSource t;
  t.add(std::move(s), 0, size / bytes);
  return t;
}

TokenSource TokenSource::from_npy(const std::filesystem::path& file) {
  auto s = std::make_shared<Storage>();
  s->map = MappedFile(file);
  s->name = file.string();
  NpyArray a = read_npy(s->map.bytes(), s->name);
  if (a.count == 0) user_error("{}:{}: the array is empty", s->name, a.offset);
  s->offset = a.offset;
  s->data = s->map.bytes().data() + a.offset;
  s->bytes = a.bytes;
  s->is_signed = a.is_signed;
  TokenSource t;
  t.add(std::move(s), 0, a.count);
  return t;
}

TokenSource TokenSource::join(const std::vector<TokenSource>& parts) {
  TokenSource all;
  for (auto& part : parts)
    for (auto& p : part.pieces_) all.add(p.storage, p.begin, p.size);
  return all;
}

template <class F>
void TokenSource::copy_as(int64_t begin, std::span<int32_t> out,
                          F unlearned) const {
  MOEC_CHECK(begin >= 0 && begin + int64_t(out.size()) <= size_);
  auto piece = std::ranges::upper_bound(pieces_, begin, {}, &Piece::end);
  for (size_t done = 0; done < out.size(); ++piece) {
    int64_t left = piece->end - begin;
    auto n = size_t(std::min(left, int64_t(out.size() - done)));
    int64_t first = piece->begin + piece->size - left;
    piece->storage->visit([&](auto ids) {
      for (size_t i = 0; i < n; ++i)
        out[done + i] = int32_t(ids[first + int64_t(i)]);
    });
    if (piece->storage->marked)
      for (int32_t& id : out.subspan(done, n))
        if (id < 0) id = unlearned(id);
    done += n;
    begin += int64_t(n);
  }
}

void TokenSource::copy(int64_t begin, std::span<int32_t> out) const {
  copy_as(begin, out, [](int32_t id) { return -1 - id; });
}

void TokenSource::copy_targets(int64_t begin, std::span<int32_t> out) const {
  copy_as(begin, out, [](int32_t) { return -1; });
}

void TokenSource::check_vocab(int64_t vocab) const {
  for (auto& p : pieces_)
    p.storage->visit([&](auto ids) {
      // Negative ids are large ones without a sign.
      for (int64_t i = p.begin; i < p.begin + p.size; ++i)
        if (uint64_t(ids[i]) >= uint64_t(vocab)) [[unlikely]]
          user_error(
              "{}:{}: token id {} is outside the vocabulary of {}; the ids and "
              "the model's vocab do not belong together",
              p.storage->name, p.storage->offset + i * p.storage->bytes, ids[i],
              vocab);
    });
}

TokenSource TokenSource::part(int64_t begin, int64_t size) const {
  MOEC_CHECK(begin >= 0 && size >= 0 && begin + size <= size_);
  TokenSource out;
  for (auto& p : pieces_) {
    int64_t start = p.end - p.size;  // of the piece, as a token
    int64_t from = std::max(begin, start), to = std::min(begin + size, p.end);
    if (from < to) out.add(p.storage, p.begin + from - start, to - from);
  }
  return out;
}

void TokenBuffer::append(std::span<const uint32_t> ids) {
  if (wide_)
    wide_ids_.insert(wide_ids_.end(), ids.begin(), ids.end());
  else
    narrow_ids_.insert(narrow_ids_.end(), ids.begin(), ids.end());
}

void TokenBuffer::append_unlearned(std::span<const uint32_t> ids) {
  if (!wide_) {
    wide_ids_.assign(narrow_ids_.begin(), narrow_ids_.end());
    narrow_ids_ = {};
    wide_ = true;
  }
  marked_ = true;
  for (uint32_t id : ids) wide_ids_.push_back(-1 - int32_t(id));
}

TokenSource TokenBuffer::finish() && {
  auto s = std::make_shared<TokenSource::Storage>();
  if (wide_) {
    auto size = int64_t(wide_ids_.size());
    s->wide = std::move(wide_ids_);
    s->data = reinterpret_cast<const std::byte*>(s->wide.data());
    s->is_signed = true;
    s->marked = marked_;
    TokenSource t;
    t.add(std::move(s), 0, size);
    return t;
  }
  auto size = int64_t(narrow_ids_.size());
  s->narrow = std::move(narrow_ids_);
  s->data = reinterpret_cast<const std::byte*>(s->narrow.data());
  s->bytes = 2;
  TokenSource t;
  t.add(std::move(s), 0, size);
  return t;
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

namespace {

int64_t predicted(std::span<const int32_t> targets) {
  return int64_t(targets.size()) - std::ranges::count(targets, -1);
}

}  // namespace

TokenBatch TrainWindows::batch(int64_t number, int64_t rows) const {
  auto n = size_t(rows * seq_);
  TokenBatch b{rows, seq_, std::vector<int32_t>(n), std::vector<int32_t>(n), 0};
  for (int64_t r = 0; r < rows; ++r) {
    int64_t start = window_start(number * rows + r);
    auto at = size_t(r * seq_), length = size_t(seq_);
    tokens_.copy(start, std::span(b.tokens).subspan(at, length));
    tokens_.copy_targets(start + 1, std::span(b.targets).subspan(at, length));
  }
  b.predicted = predicted(b.targets);
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
    tokens_.copy_targets(start + 1, std::span(b.targets).subspan(at, count));
  }
  b.predicted = predicted(b.targets);
  return b;
}

}  // namespace moec
