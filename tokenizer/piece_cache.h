// Ids of pieces already seen, for one thread. Nine of ten pieces of a text are
// among a few thousand, so encoding is mostly one look here: 32 bytes an entry,
// the piece itself as the key. Bounded: when full it starts over.
//
// New pieces wait until there are some, and are merged side by side; meanwhile
// the ids behind them are written without a gap. settle() fits theirs in.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/huge_array.h"
#include "tokenizer/merge_short.h"
#include "tokenizer/piece_key.h"

namespace moec::bpe {

struct Model;

class PieceCache {
 public:
  // `largest`, a power of two: entries at most (of 32 bytes, half of them
  // used).
  explicit PieceCache(const Model& model, size_t largest = size_t(1) << 22);

  // Before the first emit of a run of them.
  void begin() {
    // An error broke off the run before.
    if (waiting_) start_over();
  }

  void prefetch(uint64_t hash) const {
    __builtin_prefetch(&entries_[hash & mask_]);
  }

  // Writes the piece's ids, if not now then in settle(), and returns their end.
  // `out` has place for 4 ids, and for as many as the run's pieces have bytes
  // up to this one.
  uint32_t* emit(Key k, uint64_t hash, uint32_t* out) {
    for (size_t i = hash & mask_;; i = (i + 1) & mask_) {
      const Entry& e = entries_[i];
      if (e.key == k) [[likely]] {
        std::memcpy(out, e.ids, 16);
        if (e.count <= 3) [[likely]]
          return out + e.count;
        return copy(e.ids[0], e.count, out);
      }
      if (e.count == 0) return miss(k, i, out);
    }
  }
  // The same in two steps for pieces of more than kShortPiece bytes.
  uint64_t prefetch_long(const uint8_t* p, size_t n) const {
    if (n > kLongest) return 0;
    uint64_t h = hash_long(p, n);
    __builtin_prefetch(&long_[h >> 8 & (long_.size() - 1)]);
    return h;
  }
  uint32_t* emit_long(const uint8_t* p, size_t n, uint64_t hash, uint32_t* out);
  // Any piece; nothing is read behind it.
  uint32_t* emit_end(const uint8_t* p, size_t n, uint32_t* out) {
    if (n > kShortPiece) return emit_long(p, n, prefetch_long(p, n), out);
    Key k = make_key_at_end(p, n);
    return emit(k, hash_key(k), out);
  }
  // Ends the run, or frees its place for another: all ids up to `out` are
  // there; returns their new end.
  uint32_t* settle(uint32_t* out);

 private:
  // Longer pieces are merged anew each time.
  static constexpr size_t kLongest = 1024;
  // A count of this and more: the piece waits, as the number below.
  static constexpr uint32_t kWaits = uint32_t(1) << 31;
  static constexpr size_t kMostWaiting = 16, kMostHoles = 128;
  struct Entry {
    Key key;
    // Up to 3 ids; more: ids[0] is their place in ids_.
    uint32_t ids[3], count;
  };
  struct LongEntry {
    uint64_t hash;
    uint32_t text, length, ids, count;
  };
  // Where a waiting piece's ids belong.
  struct Hole {
    uint32_t *at, piece;
  };
  uint32_t* copy(uint32_t place, uint32_t count, uint32_t* out) {
    if (count >= kWaits) [[unlikely]]
      return leave_hole(count - kWaits, out);
    std::memcpy(out, ids_.data() + place, count * sizeof *out);
    return out + count;
  }
  uint32_t* leave_hole(uint32_t piece, uint32_t* out);
  uint32_t* miss(Key k, size_t at, uint32_t* out);
  uint32_t* miss_long(const uint8_t* p, size_t n, uint64_t hash, uint32_t* out);
  uint32_t add_waiting(const uint8_t* p, size_t n, size_t at, bool is_long);
  size_t find_free(Key k) const;
  size_t find_free(uint64_t long_hash) const;
  void store(Entry& e, const uint32_t* ids, size_t n);
  uint32_t store_ids(const uint32_t* ids, size_t n);
  void start_over();
  void grow();
  void grow_long();

  const Model& model_;
  size_t largest_, mask_ = 0, used_ = 0, long_used_ = 0;
  HugeArray<Entry> entries_;
  HugeArray<LongEntry> long_;
  std::string texts_;
  std::vector<uint32_t> ids_, scratch_;

  size_t waiting_ = 0, holes_ = 0, waiting_ids_ = 0;
  ShortIds pieces_[kMostWaiting];
  // Where the ids are kept: a place in long_ or in entries_.
  struct {
    size_t at;
    bool is_long;
  } owners_[kMostWaiting];
  Hole hole_[kMostHoles];
  uint32_t merging_[kMostWaiting * kShortMerge];
};

}  // namespace moec::bpe
