#include "tokenizer/merge_short.h"

#include <algorithm>
#include <functional>

#include "support/error.h"
#include "tokenizer/model.h"

namespace moec::bpe {

namespace {

uint32_t merge_one(const PairTable& pairs, uint32_t* ids, uint32_t n) {
  // By place: what the pair that begins there merges to.
  uint64_t merges[kShortMerge];
  for (size_t i = 0; i + 1 < n; ++i)
    merges[i] = pairs.find_low(ids[i], ids[i + 1]);
  while (n > 1) {
    size_t best = 0;
    uint64_t least = merges[0];
    for (size_t i = 1; i + 1 < n; ++i) {
      best = merges[i] < least ? i : best;
      least = merges[i] < least ? merges[i] : least;
    }
    if (least == kNoMerge) break;
    ids[best] = uint32_t(least);
    for (size_t i = best + 1; i + 1 < n; ++i) {
      ids[i] = ids[i + 1];
      merges[i] = merges[i + 1];
    }
    --n;
    if (best + 1 < n) merges[best] = pairs.find(ids[best], ids[best + 1]);
    if (best > 0) merges[best - 1] = pairs.find(ids[best - 1], ids[best]);
  }
  return n;
}

}  // namespace

void merge_short_scalar(const PairTable& pairs, std::span<ShortIds> pieces) {
  for (ShortIds& p : pieces) p.count = merge_one(pairs, p.ids, p.count);
}

void merge_short(const PairTable& pairs, std::span<ShortIds> pieces) {
  static const bool wide = host_isa() == Isa::Avx512;
  wide&& pairs.ranks() < kWideRanks ? merge_short_avx512(pairs, pieces)
                                    : merge_short_scalar(pairs, pieces);
}

namespace {

// A linked list of ids and a heap of (rank, place); an entry is stale where the
// pair at its place has another rank by now.
size_t merge_long(const PairTable& pairs, std::vector<uint32_t>& ids) {
  auto end = uint32_t(ids.size());
  std::vector<uint32_t> next(end), before(end);
  for (uint32_t i = 0; i < end; ++i) {
    next[i] = i + 1;
    before[i] = i - 1;
  }
  std::vector<uint64_t> heap;
  auto found = [&](uint32_t i) {
    return ids[i] == kNone || next[i] >= end ? kNoMerge
                                             : pairs.find(ids[i], ids[next[i]]);
  };
  constexpr uint64_t kRank = ~uint64_t(0) << 32;
  for (uint32_t i = 0; i < end; ++i)
    if (uint64_t m = found(i); m != kNoMerge) heap.push_back((m & kRank) | i);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  auto push = [&](uint32_t i) {
    uint64_t m = found(i);
    if (m == kNoMerge) return;
    heap.push_back((m & kRank) | i);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    uint64_t top = heap.back();
    heap.pop_back();
    auto i = uint32_t(top);
    uint64_t m = found(i);
    if (m == kNoMerge || (m & kRank) != (top & kRank)) continue;
    uint32_t gone = next[i], after = next[gone];
    ids[i] = uint32_t(m);
    ids[gone] = kNone;
    next[i] = after;
    if (after < end) before[after] = i;
    push(i);
    if (i > 0) push(before[i]);
  }
  size_t n = 0;
  for (uint32_t i = 0; i < end; i = next[i]) ids[n++] = ids[i];
  return n;
}

}  // namespace

void merge_ids(const PairTable& pairs, std::vector<uint32_t>& ids) {
  if (ids.size() > kShortMerge) {
    ids.resize(merge_long(pairs, ids));
  } else if (!ids.empty()) {
    ShortIds one{ids.data(), uint32_t(ids.size())};
    merge_short(pairs, {&one, 1});
    ids.resize(one.count);
  }
}

uint32_t whole_piece(const Model& m, const uint8_t* piece, size_t n) {
  if (!m.vocabulary.ignore_merges || n > 4096) return kNone;
  auto at = m.ids.find({reinterpret_cast<const char*>(piece), n});
  return at == m.ids.end() ? kNone : at->second;
}

void write_byte_ids(const Model& m, const uint8_t* piece, size_t n,
                    uint32_t* ids) {
  for (size_t i = 0; i < n; ++i) {
    ids[i] = m.byte_ids[piece[i]];
    if (ids[i] == kNone)
      user_error("the byte 0x{:02x} of the text is not in the vocabulary",
                 piece[i]);
  }
}

void merge_piece(const Model& m, const uint8_t* piece, size_t n,
                 std::vector<uint32_t>& ids) {
  uint32_t whole = whole_piece(m, piece, n);
  if (whole != kNone) {
    ids.assign(1, whole);
    return;
  }
  if (n > kLongestPiece)
    user_error(
        "a piece of {} bytes without a place to split is over the limit of {}",
        n, kLongestPiece);
  ids.resize(n);
  write_byte_ids(m, piece, n, ids.data());
  merge_ids(m.pairs, ids);
}

}  // namespace moec::bpe
