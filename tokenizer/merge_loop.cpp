// Every word stands once in one array of symbols, a separator before and after.
// A token of n bytes fills n places: the first holds its id, the second and the
// last hold n with the top bit set, so both neighbours of a place are found
// from there alone. A pair keeps the list of the places where it was made, in
// ascending order; a place whose pair has gone since is skipped when the list
// is walked.
//
// Two facts of byte-level BPE keep this simple. A new pair always contains the
// newest token, so all its places appear within one merge; and afterwards its
// count only falls. So each list is written once, and the heap may hold old
// counts: an entry is put right when it comes up. Only pairs at or above a
// falling threshold are in the heap at all.
#include "tokenizer/merge_loop.h"

#include <algorithm>
#include <array>

#include "support/error.h"
#include "support/thread_pool.h"
#include "tokenizer/huge_array.h"

namespace moec::bpe {
namespace {

constexpr uint32_t kHole = uint32_t(1) << 31, kSeparator = ~uint32_t(0);
// A merge with fewer places is not worth waking the threads for.
constexpr uint32_t kParallelPlaces = 1 << 14;

struct Place {
  uint32_t at, weight;
};

struct Pair {
  uint32_t left, right;
  uint64_t count;
  uint64_t begin;  // in places
  uint32_t size;
};

struct Heaped {
  uint64_t count, tie;
  uint32_t pair;
  bool operator<(const Heaped& o) const {
    return count != o.count ? count < o.count : tie > o.tie;
  }
};

// (left, right) -> index of the pair; linear probing, at most half full.
class PairIndex {
 public:
  static uint64_t key(uint32_t left, uint32_t right) {
    return uint64_t(left) << 32 | right;
  }
  void prefetch(uint64_t key) const {
    __builtin_prefetch(&slots_[hash(key) & mask_]);
  }
  uint32_t find(uint64_t key) const {
    for (size_t i = hash(key) & mask_;; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return slots_[i].pair;
      if (slots_[i].key == kEmpty) return kNone;
    }
  }
  void insert(uint64_t key, uint32_t pair) {
    if (++used_ * 2 > slots_.size()) {
      std::vector<Slot> old(slots_.size() * 2);
      old.swap(slots_);
      mask_ = slots_.size() - 1;
      for (const Slot& s : old)
        if (s.key != kEmpty) put(s);
    }
    put({key, pair});
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t(0);
  struct Slot {
    uint64_t key = kEmpty;
    uint32_t pair = 0;
  };
  static size_t hash(uint64_t key) {
    key *= 0x9E3779B97F4A7C15u;
    return size_t(key ^ key >> 32);
  }
  void put(const Slot& s) {
    size_t i = hash(s.key) & mask_;
    while (slots_[i].key != kEmpty) i = (i + 1) & mask_;
    slots_[i] = s;
  }
  std::vector<Slot> slots_ = std::vector<Slot>(1 << 12);
  size_t mask_ = (1 << 12) - 1, used_ = 0;
};

// What one thread finds on one side of a merge's places.
struct Side {
  struct Sum {
    uint64_t count;
    uint32_t size;
    uint32_t next;  // where its next place goes, from 1 on; 0 = not known yet
  };
  struct Found {
    uint32_t token, at, weight;
  };
  std::vector<Sum> sums;         // by neighbour
  std::vector<uint32_t> tokens;  // neighbours with sums
  std::vector<Found> found;

  void add(uint32_t token, uint32_t at, uint32_t weight) {
    Sum& s = sums[token];
    if (s.size++ == 0) tokens.push_back(token);
    s.count += weight;
    found.push_back({token, at, weight});
  }
  void clear() {
    for (uint32_t t : tokens) sums[t] = {};
    tokens.clear();
    found.clear();
  }
};

struct Sides {
  Side left, right;
};

class Merger {
 public:
  Merger(WordList words, const MergeOptions& options);
  std::vector<std::pair<uint32_t, uint32_t>> run();

 private:
  void lay_out(WordList words);
  void first_pairs();
  bool refill();
  void push(uint32_t pair);
  uint64_t tie(uint32_t pair);
  void merge(uint32_t pair, uint32_t left, uint32_t right);
  void replace(const Place* begin, const Place* end, uint32_t left,
               uint32_t right, uint32_t made, Sides& out);
  void add_pairs(Side Sides::* side, uint32_t left, uint32_t right,
                 uint32_t made, uint32_t merged);

  uint32_t after(uint32_t at) const {
    uint32_t n = symbols_[at + 1];
    return n & kHole && n != kSeparator ? at + (n & ~kHole) : at + 1;
  }
  // The start of the token that ends before `at`; none at a separator.
  uint32_t before(uint32_t at) const {
    uint32_t n = symbols_[at - 1];
    return n & kHole && n != kSeparator ? at - (n & ~kHole) : at - 1;
  }

  const MergeOptions& options_;
  ThreadPool pool_;
  HugeArray<uint32_t> symbols_;
  std::vector<uint32_t> starts_, weights_;  // of the words
  HugeArray<Place> places_;
  size_t places_used_ = 0;
  std::vector<Pair> pairs_;
  PairIndex index_;
  std::vector<Heaped> heap_;
  uint64_t threshold_;
  std::vector<Sides> sides_;  // by thread
  size_t made_ = 0;
};

Merger::Merger(WordList words, const MergeOptions& options)
    : options_(options), pool_(std::max(1, options.threads)) {
  lay_out(std::move(words));
  first_pairs();
  uint64_t most = 0;
  for (const Pair& p : pairs_) most = std::max(most, p.count);
  threshold_ = most + 1;
  sides_.resize(size_t(pool_.threads()));
  for (Sides& s : sides_) {
    s.left.sums.resize(256 + options.merges);
    s.right.sums.resize(256 + options.merges);
  }
}

void Merger::lay_out(WordList words) {
  // A weight is 32 bits; a word that occurs more often is there several times.
  constexpr uint64_t kMost = ~uint32_t(0);
  uint64_t total = 2;
  for (const Word& w : words.words) {
    if (w.length > kLongestPiece)
      user_error(
          "a piece of {} bytes without a place to split is over the limit of "
          "{}",
          w.length, kLongestPiece);
    total += (w.length + 1) * ((w.count + kMost - 1) / kMost);
  }
  if (total >= kHole)
    user_error(
        "the text has {} bytes of distinct words, more than the trainer's 2 "
        "GiB; a split pattern or less text helps",
        total);
  symbols_ = HugeArray<uint32_t>(total);
  // A merge takes a symbol away and makes two places at most; memory is only
  // taken as it is written.
  places_ = HugeArray<Place>(3 * total);
  std::vector<const Word*> sources;
  sources.reserve(words.words.size());
  starts_.reserve(words.words.size() + 1);
  weights_.reserve(words.words.size());
  size_t at = 1;
  for (const Word& w : words.words) {
    for (uint64_t left = w.count; left > 0;) {
      uint64_t weight = std::min(left, kMost);
      left -= weight;
      sources.push_back(&w);
      starts_.push_back(uint32_t(at));
      weights_.push_back(uint32_t(weight));
      at += w.length + 1;
    }
  }
  starts_.push_back(uint32_t(at));
  symbols_[0] = kSeparator;
  size_t threads = size_t(pool_.threads()), n = sources.size();
  pool_.run(int64_t(threads), [&](int64_t task, int) {
    auto t = size_t(task);
    for (size_t i = n * t / threads; i < n * (t + 1) / threads; ++i) {
      uint32_t* to = symbols_.data() + starts_[i];
      const char* text = words.texts.data() + sources[i]->text;
      for (uint32_t c = 0; c < sources[i]->length; ++c)
        to[c] = options_.byte_ids[uint8_t(text[c])];
      to[sources[i]->length] = kSeparator;
    }
  });
}

// The pairs of bytes, by counting sort.
void Merger::first_pairs() {
  size_t threads = size_t(pool_.threads()), words = weights_.size();
  struct Sums {
    std::vector<uint64_t> count, next;
    Sums() : count(1 << 16), next(1 << 16) {}
  };
  std::vector<Sums> sums(threads);
  auto each = [&](size_t t, auto f) {
    for (size_t w = words * t / threads; w < words * (t + 1) / threads; ++w)
      for (uint32_t at = starts_[w]; at + 2 < starts_[w + 1]; ++at)
        f(symbols_[at] << 8 | symbols_[at + 1], at, weights_[w]);
  };
  pool_.run(int64_t(threads), [&](int64_t t, int) {
    Sums& s = sums[size_t(t)];
    each(size_t(t), [&](uint32_t k, uint32_t, uint32_t weight) {
      s.count[k] += weight;
      ++s.next[k];
    });
  });
  uint64_t place = 0;
  for (uint32_t k = 0; k < 1 << 16; ++k) {
    Pair p{k >> 8, k & 255, 0, place, 0};
    for (Sums& s : sums) {
      p.count += s.count[k];
      uint64_t n = s.next[k];
      s.next[k] = place;
      place += n;
    }
    p.size = uint32_t(place - p.begin);
    if (p.size == 0) continue;
    index_.insert(PairIndex::key(p.left, p.right), uint32_t(pairs_.size()));
    pairs_.push_back(p);
  }
  places_used_ = place;
  pool_.run(int64_t(threads), [&](int64_t t, int) {
    Sums& s = sums[size_t(t)];
    each(size_t(t), [&](uint32_t k, uint32_t at, uint32_t weight) {
      places_[s.next[k]++] = {at, weight};
    });
  });
}

// The first place where the pair still stands, or its ids.
uint64_t Merger::tie(uint32_t pair) {
  Pair& p = pairs_[pair];
  if (!options_.first) return PairIndex::key(p.left, p.right);
  for (; p.size > 0; ++p.begin, --p.size) {
    uint32_t at = places_[p.begin].at;
    if (symbols_[at] == p.left && symbols_[after(at)] == p.right) return at;
  }
  return ~uint64_t(0);
}

void Merger::push(uint32_t pair) {
  if (pairs_[pair].count < threshold_) return;
  heap_.push_back({pairs_[pair].count, tie(pair), pair});
  std::push_heap(heap_.begin(), heap_.end());
}

// Lowers the threshold until the heap has something; false at the end.
bool Merger::refill() {
  while (heap_.empty() && threshold_ > options_.min_count) {
    threshold_ = std::max(options_.min_count, threshold_ / 4);
    for (uint32_t i = 0; i < pairs_.size(); ++i)
      if (pairs_[i].count >= threshold_)
        heap_.push_back({pairs_[i].count, tie(i), i});
    std::make_heap(heap_.begin(), heap_.end());
  }
  return !heap_.empty();
}

std::vector<std::pair<uint32_t, uint32_t>> Merger::run() {
  std::vector<std::pair<uint32_t, uint32_t>> merges;
  for (auto [left, right] : options_.seed) {
    merge(index_.find(PairIndex::key(left, right)), left, right);
    merges.push_back({left, right});
  }
  while (merges.size() < options_.merges && (!heap_.empty() || refill())) {
    std::pop_heap(heap_.begin(), heap_.end());
    Heaped top = heap_.back();
    heap_.pop_back();
    const Pair& p = pairs_[top.pair];
    if (p.count != top.count || (options_.first && tie(top.pair) != top.tie)) {
      push(top.pair);
      continue;
    }
    merges.push_back({p.left, p.right});
    merge(top.pair, p.left, p.right);
    if (options_.progress) options_.progress(merges.size(), top.count);
  }
  return merges;
}

void Merger::replace(const Place* begin, const Place* end, uint32_t left,
                     uint32_t right, uint32_t made, Sides& out) {
  constexpr int kAhead = 12;
  for (const Place* p = begin; p < end; ++p) {
    if (p + kAhead < end) __builtin_prefetch(&symbols_[p[kAhead].at], 1);
    uint32_t at = p->at;
    if (symbols_[at] != left) continue;
    uint32_t second = after(at);
    if (symbols_[second] != right) continue;
    uint32_t next = after(second), length = next - at;
    symbols_[at] = made;
    symbols_[at + 1] = symbols_[next - 1] = kHole | length;
    // An old second place inside, which nothing may take for a token.
    if (second > at + 1 && second < next - 1) symbols_[second] = kHole;
    if (uint32_t y = symbols_[next]; y != kSeparator)
      out.right.add(y, at, p->weight);
    if (symbols_[at - 1] != kSeparator) {
      uint32_t x = before(at);
      out.left.add(symbols_[x], x, p->weight);
    }
  }
}

// The pairs of the new token with one side's neighbours: their places, thread
// by thread in order, and what the neighbours' old pairs lose.
void Merger::add_pairs(Side Sides::* side, uint32_t left, uint32_t right,
                       uint32_t made, uint32_t merged) {
  bool is_left = side == &Sides::left;
  auto old_key = [&](uint32_t t) {
    return is_left ? PairIndex::key(t, left) : PairIndex::key(right, t);
  };
  auto new_key = [&](uint32_t t) {
    return is_left ? PairIndex::key(t, made) : PairIndex::key(made, t);
  };
  for (Sides& s : sides_)
    for (uint32_t t : (s.*side).tokens) {
      index_.prefetch(old_key(t));
      index_.prefetch(new_key(t));
    }
  uint32_t place = 1;
  for (size_t i = 0; i < sides_.size(); ++i) {
    for (uint32_t t : (sides_[i].*side).tokens) {
      if ((sides_[i].*side).sums[t].next) continue;  // an earlier thread's
      Pair p{is_left ? t : made, is_left ? made : t, 0,
             places_used_ + place - 1, 0};
      for (size_t j = i; j < sides_.size(); ++j) {
        Side::Sum& s = (sides_[j].*side).sums[t];
        if (s.size == 0) continue;
        p.count += s.count;
        p.size += s.size;
        s.next = place;
        place += s.size;
      }
      uint32_t old = index_.find(old_key(t));
      if (old != kNone && old != merged) pairs_[old].count -= p.count;
      index_.insert(new_key(t), uint32_t(pairs_.size()));
      pairs_.push_back(p);
    }
  }
  Place* base = places_.data() + places_used_;
  auto scatter = [&](Side& s) {
    for (const Side::Found& f : s.found)
      base[s.sums[f.token].next++ - 1] = {f.at, f.weight};
    s.clear();
  };
  if (place < kParallelPlaces)
    for (Sides& s : sides_) scatter(s.*side);
  else
    pool_.run(int64_t(sides_.size()),
              [&](int64_t i, int) { scatter(sides_[size_t(i)].*side); });
  places_used_ += place - 1;
}

void Merger::merge(uint32_t pair, uint32_t left, uint32_t right) {
  auto made = uint32_t(256 + made_++);
  if (pair == kNone) return;
  const Place* begin = places_.data() + pairs_[pair].begin;
  size_t n = pairs_[pair].size;
  pairs_[pair].count = 0;
  pairs_[pair].size = 0;
  size_t parts = n < kParallelPlaces ? 1 : sides_.size();
  // Parts meet between words: a word's places belong to one thread.
  std::vector<const Place*> cuts{begin};
  for (size_t i = 1; i < parts; ++i) {
    const Place* cut = std::max(cuts.back(), begin + n * i / parts);
    auto same_word = [&] {
      for (uint32_t at = cut[-1].at; at < cut->at; ++at)
        if (symbols_[at] == kSeparator) return false;
      return true;
    };
    while (cut > begin && cut < begin + n && same_word()) ++cut;
    cuts.push_back(cut);
  }
  cuts.push_back(begin + n);
  if (parts == 1)
    replace(begin, begin + n, left, right, made, sides_[0]);
  else
    pool_.run(int64_t(parts), [&](int64_t i, int) {
      replace(cuts[size_t(i)], cuts[size_t(i) + 1], left, right, made,
              sides_[size_t(i)]);
    });
  size_t fresh = pairs_.size();
  add_pairs(&Sides::right, left, right, made, pair);
  add_pairs(&Sides::left, left, right, made, pair);
  for (size_t i = fresh; i < pairs_.size(); ++i) push(uint32_t(i));
}

}  // namespace

std::vector<std::pair<uint32_t, uint32_t>> merge_words(
    WordList words, const MergeOptions& options) {
  return Merger(std::move(words), options).run();
}

}  // namespace moec::bpe
