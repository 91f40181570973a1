#include "tokenizer/piece_cache.h"

#include <algorithm>

#include "tokenizer/model.h"

namespace moec::bpe {

PieceCache::PieceCache(const Model& model, size_t largest)
    : model_(model), largest_(largest) {
  start_over();
}

void PieceCache::start_over() {
  entries_ = HugeArray<Entry>(std::min(size_t(1) << 16, largest_));
  mask_ = entries_.size() - 1;
  used_ = long_used_ = 0;
  long_.assign(1 << 10, {});
  texts_.clear();
  ids_.clear();
}

void PieceCache::grow() {
  HugeArray<Entry> old(std::move(entries_));
  // In large steps: fresh pages cost more than the room they leave.
  entries_ = HugeArray<Entry>(std::min(old.size() * 4, largest_));
  mask_ = entries_.size() - 1;
  for (size_t i = 0; i < old.size(); ++i) {
    if (old[i].count == 0) continue;
    size_t at = hash_key(old[i].key) & mask_;
    while (entries_[at].count) at = (at + 1) & mask_;
    entries_[at] = old[i];
  }
}

void PieceCache::insert(Key k, const std::vector<uint32_t>& ids) {
  if (used_ * 2 >= entries_.size()) grow();
  size_t i = hash_key(k) & mask_;
  while (entries_[i].count) i = (i + 1) & mask_;
  Entry& e = entries_[i];
  e.key = k;
  e.count = uint32_t(ids.size());
  if (ids.size() <= 3) {
    std::copy(ids.begin(), ids.end(), e.ids);
  } else {
    e.ids[0] = uint32_t(ids_.size());
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }
  ++used_;
}

uint32_t* PieceCache::copy(uint32_t place, uint32_t count,
                           uint32_t* out) const {
  std::memcpy(out, ids_.data() + place, count * sizeof *out);
  return out + count;
}

uint32_t* PieceCache::miss(Key k, uint32_t* out) {
  uint8_t piece[16];
  std::memcpy(piece, &k, 16);
  scratch_.clear();
  merge_piece(model_, piece, k.length(), scratch_);
  if (used_ * 2 >= largest_) start_over();
  insert(k, scratch_);
  std::memcpy(out, scratch_.data(), scratch_.size() * sizeof *out);
  return out + scratch_.size();
}

uint32_t* PieceCache::emit_long(const uint8_t* p, size_t n, uint64_t h,
                                uint32_t* out) {
  if (n <= kLongest) {
    size_t mask = long_.size() - 1, i = h >> 8 & mask;
    for (; long_[i].hash; i = (i + 1) & mask) {
      const LongEntry& e = long_[i];
      if (e.hash == h && e.length == n &&
          std::memcmp(texts_.data() + e.text, p, n) == 0)
        return copy(e.ids, e.count, out);
    }
    scratch_.clear();
    merge_piece(model_, p, n, scratch_);
    // The texts are what takes memory here; as many bytes as the short table.
    if (texts_.size() > largest_ * sizeof(Entry)) start_over();
    if (++long_used_ * 2 > long_.size()) {
      std::vector<LongEntry> old(long_.size() * 2);
      old.swap(long_);
      mask = long_.size() - 1;
      for (const LongEntry& e : old) {
        if (!e.hash) continue;
        size_t at = e.hash >> 8 & mask;
        while (long_[at].hash) at = (at + 1) & mask;
        long_[at] = e;
      }
    }
    mask = long_.size() - 1;
    for (i = h >> 8 & mask; long_[i].hash;) i = (i + 1) & mask;
    long_[i] = {h, uint32_t(texts_.size()), uint32_t(n), uint32_t(ids_.size()),
                uint32_t(scratch_.size())};
    texts_.append(reinterpret_cast<const char*>(p), n);
    ids_.insert(ids_.end(), scratch_.begin(), scratch_.end());
  } else {
    scratch_.clear();
    merge_piece(model_, p, n, scratch_);
  }
  std::copy(scratch_.begin(), scratch_.end(), out);
  return out + scratch_.size();
}

}  // namespace moec::bpe
