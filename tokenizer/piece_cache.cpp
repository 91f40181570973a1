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
  long_ = HugeArray<LongEntry>(1 << 12);
  texts_.clear();
  ids_.clear();
  // Growing would move them to fresh pages again and again.
  texts_.reserve(largest_);
  ids_.reserve(largest_ / 4);
  waiting_ = holes_ = waiting_ids_ = 0;
}

size_t PieceCache::find_free(Key k) const {
  size_t i = hash_key(k) & mask_;
  while (entries_[i].count) i = (i + 1) & mask_;
  return i;
}

size_t PieceCache::find_free(uint64_t long_hash) const {
  size_t mask = long_.size() - 1, i = long_hash >> 8 & mask;
  while (long_[i].hash) i = (i + 1) & mask;
  return i;
}

void PieceCache::grow() {
  HugeArray<Entry> old(std::move(entries_));
  // In large steps: fresh pages cost more than the room they leave.
  entries_ = HugeArray<Entry>(std::min(old.size() * 4, largest_));
  mask_ = entries_.size() - 1;
  for (size_t i = 0; i < old.size(); ++i)
    if (old[i].count) entries_[find_free(old[i].key)] = old[i];
}

void PieceCache::grow_long() {
  HugeArray<LongEntry> old(std::move(long_));
  long_ = HugeArray<LongEntry>(old.size() * 4);
  for (size_t i = 0; i < old.size(); ++i)
    if (old[i].hash) long_[find_free(old[i].hash)] = old[i];
}

uint32_t PieceCache::store_ids(const uint32_t* ids, size_t n) {
  ids_.insert(ids_.end(), ids, ids + n);
  return uint32_t(ids_.size() - n);
}

void PieceCache::store(Entry& e, const uint32_t* ids, size_t n) {
  e.count = uint32_t(n);
  if (n <= 3)
    std::copy_n(ids, n, e.ids);
  else
    e.ids[0] = store_ids(ids, n);
}

uint32_t PieceCache::add_waiting(const uint8_t* p, size_t n, size_t at,
                                 bool is_long) {
  uint32_t* ids = merging_ + waiting_ids_;
  write_byte_ids(model_, p, n, ids);
  pieces_[waiting_] = {ids, uint32_t(n)};
  owners_[waiting_] = {at, is_long};
  waiting_ids_ += n;
  return uint32_t(waiting_++);
}

uint32_t* PieceCache::leave_hole(uint32_t piece, uint32_t* out) {
  hole_[holes_++] = {out, piece};
  bool full = holes_ == kMostHoles || waiting_ == kMostWaiting;
  return full ? settle(out) : out;
}

uint32_t* PieceCache::miss(Key k, size_t at, uint32_t* out) {
  if (used_ * 2 >= entries_.size()) [[unlikely]] {
    out = settle(out);
    entries_.size() < largest_ ? grow() : start_over();
    at = find_free(k);
  }
  uint8_t piece[16];
  std::memcpy(piece, &k, 16);
  uint32_t whole = whole_piece(model_, piece, k.length());
  Entry e{k, {whole}, 1};
  if (whole == kNone)
    e.count = kWaits | add_waiting(piece, k.length(), at, false);
  ++used_;
  entries_[at] = e;
  if (whole == kNone) return leave_hole(e.count - kWaits, out);
  *out = whole;
  return out + 1;
}

uint32_t* PieceCache::emit_long(const uint8_t* p, size_t n, uint64_t h,
                                uint32_t* out) {
  size_t mask = long_.size() - 1, i = h >> 8 & mask;
  for (; n <= kLongest && long_[i].hash; i = (i + 1) & mask) {
    const LongEntry& e = long_[i];
    if (e.hash == h && e.length == n &&
        std::memcmp(texts_.data() + e.text, p, n) == 0)
      return copy(e.ids, e.count, out);
  }
  return miss_long(p, n, h, out);
}

uint32_t* PieceCache::miss_long(const uint8_t* p, size_t n, uint64_t h,
                                uint32_t* out) {
  if (n > kLongest) {
    merge_piece(model_, p, n, scratch_);
    return std::copy(scratch_.begin(), scratch_.end(), out);
  }
  // The texts are what takes memory here; as many bytes as the short table.
  bool full = texts_.size() > largest_ * sizeof(Entry);
  if (full || (long_used_ + 1) * 2 > long_.size()) {
    out = settle(out);
    full ? start_over() : grow_long();
  }
  size_t i = find_free(h);
  LongEntry e{h, uint32_t(texts_.size()), uint32_t(n), 0, 0};
  if (n <= kShortMerge && whole_piece(model_, p, n) == kNone) {
    uint32_t waiting = add_waiting(p, n, i, true);
    e.count = kWaits | waiting;
  } else {
    merge_piece(model_, p, n, scratch_);
    e.ids = store_ids(scratch_.data(), scratch_.size());
    e.count = uint32_t(scratch_.size());
  }
  long_[i] = e;
  ++long_used_;
  texts_.append(reinterpret_cast<const char*>(p), n);
  return copy(e.ids, e.count, out);
}

uint32_t* PieceCache::settle(uint32_t* out) {
  if (!waiting_) return out;
  merge_short(model_.pairs, {pieces_, waiting_});
  for (size_t i = 0; i < waiting_; ++i) {
    const ShortIds& p = pieces_[i];
    auto [at, is_long] = owners_[i];
    if (is_long) {
      long_[at].ids = store_ids(p.ids, p.count);
      long_[at].count = p.count;
    } else {
      store(entries_[at], p.ids, p.count);
    }
  }
  // From the last one on, what stands behind a hole makes room for it.
  size_t room = 0;
  for (size_t i = 0; i < holes_; ++i) room += pieces_[hole_[i].piece].count;
  uint32_t *end = out, *result = out + room;
  for (size_t i = holes_; i-- > 0;) {
    const Hole& h = hole_[i];
    const ShortIds& p = pieces_[h.piece];
    std::memmove(h.at + room, h.at, size_t(end - h.at) * sizeof *out);
    room -= p.count;
    std::memcpy(h.at + room, p.ids, p.count * sizeof *out);
    end = h.at;
  }
  waiting_ = holes_ = waiting_ids_ = 0;
  return result;
}

}  // namespace moec::bpe
