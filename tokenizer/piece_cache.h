// Ids of pieces already seen, for one thread. Nine of ten pieces of a text are
// among a few thousand, so encoding is mostly one look here: 32 bytes an entry,
// the piece itself as the key. Bounded: when full it starts over.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/huge_array.h"
#include "tokenizer/piece_key.h"

namespace moec::bpe {

struct Model;

class PieceCache {
 public:
  // `largest`, a power of two: entries at most (of 32 bytes, half of them
  // used).
  explicit PieceCache(const Model& model, size_t largest = size_t(1) << 22);

  void prefetch(uint64_t hash) const {
    __builtin_prefetch(&entries_[hash & mask_]);
  }

  // Writes the piece's ids and returns their end. `out` has place for 4 ids
  // and for as many as the piece has bytes.
  uint32_t* emit(Key k, uint64_t hash, uint32_t* out) {
    for (size_t i = hash & mask_;; i = (i + 1) & mask_) {
      const Entry& e = entries_[i];
      if (e.key == k) [[likely]] {
        std::memcpy(out, e.ids, 16);
        if (e.count <= 3) [[likely]]
          return out + e.count;
        return copy(e.ids[0], e.count, out);
      }
      if (e.count == 0) return miss(k, out);
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

 private:
  // Longer pieces are merged anew each time.
  static constexpr size_t kLongest = 1024;
  struct Entry {
    Key key;
    // Up to 3 ids; more: ids[0] is their place in ids_.
    uint32_t ids[3], count;
  };
  struct LongEntry {
    uint64_t hash;
    uint32_t text, length, ids, count;
  };
  uint32_t* copy(uint32_t place, uint32_t count, uint32_t* out) const;
  uint32_t* miss(Key k, uint32_t* out);
  void insert(Key k, const std::vector<uint32_t>& ids);
  void start_over();
  void grow();

  const Model& model_;
  size_t largest_, mask_ = 0, used_ = 0, long_used_ = 0;
  HugeArray<Entry> entries_;
  std::vector<LongEntry> long_;
  std::string texts_;
  std::vector<uint32_t> ids_, scratch_;
};

}  // namespace moec::bpe
