#include "tokenizer/merge_short.h"

#include <algorithm>
#include <functional>

#include "support/error.h"
#include "tokenizer/split.h"

namespace moec::bpe {

size_t merge_short_scalar(const PairTable& pairs, uint32_t* ids, size_t n) {
  // By place: the rank of the pair that begins there, then what it makes.
  uint64_t merges[kShortMerge];
  auto look = [&](size_t i) {
    const auto& e = pairs.find(ids[i], ids[i + 1]);
    merges[i] = uint64_t(e.rank) << 32 | e.id;
  };
  for (size_t i = 0; i + 1 < n; ++i) look(i);
  while (n > 1) {
    size_t best = 0;
    uint64_t least = merges[0];
    for (size_t i = 1; i + 1 < n; ++i) {
      best = merges[i] < least ? i : best;
      least = merges[i] < least ? merges[i] : least;
    }
    if (least >> 32 == kNone) break;
    ids[best] = uint32_t(least);
    for (size_t i = best + 1; i + 1 < n; ++i) {
      ids[i] = ids[i + 1];
      merges[i] = merges[i + 1];
    }
    --n;
    if (best + 1 < n) look(best);
    if (best > 0) look(best - 1);
  }
  return n;
}

namespace {

size_t merge_short(const PairTable& pairs, uint32_t* ids, size_t n) {
  static const bool wide = host_isa() == Isa::Avx512;
  return wide && pairs.ranks() < kWideRanks ? merge_short_avx512(pairs, ids, n)
                                            : merge_short_scalar(pairs, ids, n);
}

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
  auto found = [&](uint32_t i) -> const PairTable::Entry* {
    if (ids[i] == kNone || next[i] >= end) return nullptr;
    const auto& e = pairs.find(ids[i], ids[next[i]]);
    return e.rank == kNone ? nullptr : &e;
  };
  for (uint32_t i = 0; i < end; ++i)
    if (auto e = found(i)) heap.push_back(uint64_t(e->rank) << 32 | i);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  auto push = [&](uint32_t i) {
    auto e = found(i);
    if (!e) return;
    heap.push_back(uint64_t(e->rank) << 32 | i);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    uint64_t top = heap.back();
    heap.pop_back();
    auto i = uint32_t(top);
    auto e = found(i);
    if (!e || e->rank != top >> 32) continue;
    uint32_t gone = next[i], after = next[gone];
    ids[i] = e->id;
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

uint32_t byte_id(const Model& m, uint8_t b) {
  uint32_t id = m.byte_ids[b];
  if (id == kNone)
    user_error("the byte 0x{:02x} of the text is not in the vocabulary", b);
  return id;
}

}  // namespace

void merge_ids(const PairTable& pairs, std::vector<uint32_t>& ids) {
  ids.resize(ids.size() <= kShortMerge
                 ? merge_short(pairs, ids.data(), ids.size())
                 : merge_long(pairs, ids));
}

void merge_piece(const Model& m, const uint8_t* piece, size_t n,
                 std::vector<uint32_t>& out) {
  if (m.vocabulary.ignore_merges && n <= 4096) {
    std::string_view s(reinterpret_cast<const char*>(piece), n);
    auto at = m.ids.find(s);
    if (at != m.ids.end()) {
      out.push_back(at->second);
      return;
    }
  }
  if (n <= kShortMerge) {
    uint32_t ids[kShortMerge];
    for (size_t i = 0; i < n; ++i) ids[i] = byte_id(m, piece[i]);
    out.insert(out.end(), ids, ids + merge_short(m.pairs, ids, n));
    return;
  }
  if (n > kLongestPiece)
    user_error(
        "a piece of {} bytes without a place to split is over the limit of {}",
        n, kLongestPiece);
  std::vector<uint32_t> ids(n);
  for (size_t i = 0; i < n; ++i) ids[i] = byte_id(m, piece[i]);
  size_t left = merge_long(m.pairs, ids);
  out.insert(out.end(), ids.begin(), ids.begin() + int64_t(left));
}

}  // namespace moec::bpe
