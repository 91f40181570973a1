// Token ids for training and evaluation, and the windows cut from them. Every
// batch is a pure function of its number: the data cursor of a run is one
// integer, and nothing else needs saving.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "support/dtype.h"
#include "support/file.h"

namespace moec {

// Token ids in memory or in mapped files, one after another. Copies share them.
class TokenSource {
 public:
  TokenSource() = default;  // no tokens
  explicit TokenSource(std::vector<int32_t> ids);
  // A headerless little-endian .bin file of u16 (bytes = 2) or u32 (4) ids.
  // A UserError if it is empty or cut within an id.
  static TokenSource from_bin(const std::filesystem::path& file, int bytes);
  // A .npy file of integers of any width (runtime/npy.h).
  static TokenSource from_npy(const std::filesystem::path& file);
  // The parts, one behind the other.
  static TokenSource join(const std::vector<TokenSource>& parts);

  int64_t size() const { return size_; }
  // out[i] = id of token begin + i.
  void copy(int64_t begin, std::span<int32_t> out) const;
  // The same, and -1 for tokens that are not to be learned.
  void copy_targets(int64_t begin, std::span<int32_t> out) const;
  // A UserError `file:offset: reason` for the first id outside [0, vocab).
  void check_vocab(int64_t vocab) const;
  TokenSource part(int64_t begin, int64_t size) const;

 private:
  friend class TokenBuffer;
  struct Storage;
  // Ids begin .. begin + size - 1 of a storage; they end before token `end`.
  struct Piece {
    std::shared_ptr<const Storage> storage;
    int64_t begin, size, end;
  };
  void add(std::shared_ptr<const Storage> storage, int64_t begin, int64_t size);
  // Id i that is not to be learned stands as -1 - i in a marked storage.
  template <class F>
  void copy_as(int64_t begin, std::span<int32_t> out, F unlearned) const;

  std::vector<Piece> pieces_;  // none is empty
  int64_t size_ = 0;
};

// Ids that an encoder writes: two bytes each where the vocabulary allows and
// all are to be learned.
class TokenBuffer {
 public:
  explicit TokenBuffer(int64_t vocab) : wide_(vocab > 65536) {}
  void append(std::span<const uint32_t> ids);
  // Context alone: these are never a target.
  void append_unlearned(std::span<const uint32_t> ids);
  TokenSource finish() &&;

 private:
  bool wide_, marked_ = false;
  std::vector<uint16_t> narrow_ids_;
  std::vector<int32_t> wide_ids_;
};

// Training and validation text: validation is the last `val_fraction` in
// [0, 1); training has floor(size * (1 - val_fraction)) tokens.
std::pair<TokenSource, TokenSource> split_tokens(const TokenSource& all,
                                                 double val_fraction);

// A batch: row-major [rows, seq]; targets[t] is the token after tokens[t], or
// -1 where there is none to predict.
struct TokenBatch {
  int64_t rows = 0, seq = 0;
  std::vector<int32_t> tokens, targets;
  int64_t predicted = 0;  // targets that are not -1
};

// Shuffled windows of seq + 1 tokens. An epoch cuts the text into windows that
// share only their border token, from an offset below seq that differs with
// the epoch, and takes each once in a pseudo-random order that is computed,
// not stored. Windows follow one another across epochs.
class TrainWindows {
 public:
  // A UserError if the text has fewer than seq + 1 tokens.
  TrainWindows(TokenSource tokens, int64_t seq, uint64_t seed);

  int64_t windows_per_epoch() const { return windows_; }
  // First token of the k-th window since the start of training.
  int64_t window_start(int64_t k) const;
  // Windows number * rows .. number * rows + rows - 1.
  TokenBatch batch(int64_t number, int64_t rows) const;

 private:
  TokenSource tokens_;
  int64_t seq_, windows_, offsets_;
  uint64_t seed_;
};

// The whole text in order, in windows of seq that share only their border
// token; every token but the first is predicted once. The last window may be
// partial and the last batch may miss rows: tokens 0, targets -1 there.
class EvalWindows {
 public:
  // A UserError if there are fewer than 2 tokens.
  EvalWindows(TokenSource tokens, int64_t seq);

  int64_t windows() const { return windows_; }
  int64_t batches(int64_t rows) const { return (windows_ + rows - 1) / rows; }
  TokenBatch batch(int64_t number, int64_t rows) const;

 private:
  TokenSource tokens_;
  int64_t seq_, windows_;
};

// The place of `index` in a pseudo-random permutation of [0, size), chosen by
// (key, stream): a Feistel network of six Philox rounds over the next power of
// four, walked until it lands inside (Black and Rogaway, "Ciphers with
// arbitrary finite domains", CT-RSA 2002). 0 <= index < size.
uint64_t permute(uint64_t index, uint64_t size, uint64_t key, uint64_t stream);

}  // namespace moec
