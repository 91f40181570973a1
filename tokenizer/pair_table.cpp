#include "tokenizer/pair_table.h"

#include <bit>

namespace moec::bpe {

PairTable::PairTable(size_t expected) {
  merges_.reserve(expected + 1);
  make_buckets(expected);
}

PairTable::PairTable(const std::vector<Merge>& merges)
    : PairTable(merges.size()) {
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& m = merges[rank];
    insert(m.left, m.right, uint32_t(rank), m.result);
  }
}

void PairTable::make_buckets(size_t merges) {
  // Two at least: a shift by 64 is none.
  buckets_.assign(std::bit_ceil(merges / kFill + 2), {});
  mask_ = buckets_.size() - 1;
  shift_ = 64 - std::countr_zero(buckets_.size());
  for (uint32_t i = 1; i < merges_.size(); ++i) place(i);
}

uint64_t PairTable::search(uint64_t key) const {
  uint64_t h = hash(key);
  for (size_t i = h >> shift_;; i = (i + 1) & mask_) {
    const Bucket& b = buckets_[i];
    for (uint32_t k = 0; k < 16; ++k) {
      const Entry& e = merges_[b.place(uint32_t(1) << k)];
      if (e.key == key) return e.value;
    }
    if (b.tags[15] == 0) return kNoMerge;
  }
}

void PairTable::place(uint32_t merge) {
  uint64_t key = merges_[merge].key, h = hash(key);
  if ((key >> 32 | uint32_t(key)) < 256)
    low_[key >> 32 << 8 | uint32_t(key)] = merge;
  size_t i = h >> shift_;
  while (buckets_[i].tags[15]) i = (i + 1) & mask_;
  Bucket& b = buckets_[i];
  size_t at = 0;
  while (b.tags[at]) ++at;
  b.tags[at] = uint8_t(tag(h));
  for (size_t k = 0; k < 3; ++k) b.places[3 * at + k] = uint8_t(merge >> 8 * k);
}

void PairTable::insert(uint32_t left, uint32_t right, uint32_t rank,
                       uint32_t id) {
  merges_.push_back({uint64_t(left) << 32 | right, uint64_t(rank) << 32 | id});
  if (merges_.size() > buckets_.size() * kFill)
    make_buckets(merges_.size() * 2);
  else
    place(uint32_t(merges_.size() - 1));
}

}  // namespace moec::bpe
