#include "tokenizer/word_count.h"

#include <algorithm>
#include <mutex>

#include "support/thread_pool.h"
#include "tokenizer/huge_array.h"
#include "tokenizer/piece_key.h"
#include "tokenizer/text_cursor.h"

namespace moec::bpe {
namespace {

// One thread's table: 32 bytes an entry for short words, the others apart with
// their text copied, so that nothing refers to the text that went by.
class Counter {
 public:
  struct Short {
    Key key;
    uint64_t count, first;
  };
  struct Long {
    uint64_t hash, text, first, count;
    uint32_t length;
  };

  void count(const Splitter& splitter, const TextRange& r) {
    for (const uint8_t* p = r.begin; p < r.stop;) {
      size_t n = splitter.split(p, r.stop, r.end, ends_, kBatch);
      if (n == 0) break;
      add_batch(p, n, r.base + uint64_t(p - r.begin), r.end);
      p += ends_[n - 1];
    }
  }

  void add(Key k, uint64_t hash, uint64_t count, uint64_t first) {
    for (size_t i = hash & mask_;; i = (i + 1) & mask_) {
      Short& e = short_[i];
      if (e.key == k) [[likely]] {
        e.count += count;
        e.first = std::min(e.first, first);
        return;
      }
      if (e.count == 0) {
        e = {k, count, first};
        if (++used_ * 2 > short_.size()) grow();
        return;
      }
    }
  }

  void add_long(const uint8_t* p, size_t n, uint64_t hash, uint64_t count,
                uint64_t first) {
    size_t mask = long_.size() - 1, i = hash >> 8 & mask;
    for (; long_[i].hash; i = (i + 1) & mask) {
      Long& e = long_[i];
      if (e.hash != hash || e.length != n ||
          std::memcmp(texts_.data() + e.text, p, n) != 0)
        continue;
      e.count += count;
      e.first = std::min(e.first, first);
      return;
    }
    long_[i] = {hash, texts_.size(), first, count, uint32_t(n)};
    texts_.append(reinterpret_cast<const char*>(p), n);
    if (++long_used_ * 2 > long_.size()) grow_long();
  }

  void add_all(const Counter& o) {
    for (size_t i = 0; i < o.short_.size(); ++i)
      if (const Short& e = o.short_[i]; e.count)
        add(e.key, hash_key(e.key), e.count, e.first);
    for (const Long& e : o.long_)
      if (e.hash)
        add_long(reinterpret_cast<const uint8_t*>(o.texts_.data()) + e.text,
                 e.length, e.hash, e.count, e.first);
  }

  WordList list() && {
    WordList out;
    out.texts = std::move(texts_);
    out.words.reserve(used_ + long_used_);
    for (const Long& e : long_)
      if (e.hash) out.words.push_back({e.first, e.count, e.text, e.length});
    for (size_t i = 0; i < short_.size(); ++i) {
      const Short& e = short_[i];
      if (e.count == 0 || e.key.length() < 2) continue;
      auto n = uint32_t(e.key.length());
      out.words.push_back({e.first, e.count, out.texts.size(), n});
      out.texts.append(reinterpret_cast<const char*>(&e.key), n);
    }
    return out;
  }

 private:
  static constexpr size_t kBatch = 256;

  void add_batch(const uint8_t* p, size_t n, uint64_t base,
                 const uint8_t* end) {
    Key keys[kBatch];
    uint64_t hashes[kBatch];
    size_t safe = n;
    while (safe > 0 && end - p - (safe > 1 ? ends_[safe - 2] : 0) < 16) --safe;
    uint32_t at = 0;
    for (size_t i = 0; i < n; ++i) {
      size_t length = std::min<size_t>(ends_[i] - at, kShortPiece);
      keys[i] =
          i < safe ? make_key(p + at, length) : make_key_at_end(p + at, length);
      hashes[i] = hash_key(keys[i]);
      __builtin_prefetch(&short_[hashes[i] & mask_], 1);
      at = ends_[i];
    }
    at = 0;
    for (size_t i = 0; i < n; ++i) {
      size_t length = ends_[i] - at;
      if (length <= kShortPiece) [[likely]]
        add(keys[i], hashes[i], 1, base + at);
      else
        add_long(p + at, length, hash_long(p + at, length), 1, base + at);
      at = ends_[i];
    }
  }

  void grow() {
    HugeArray<Short> old(std::move(short_));
    short_ = HugeArray<Short>(old.size() * 2);
    mask_ = short_.size() - 1;
    for (size_t i = 0; i < old.size(); ++i) {
      if (old[i].count == 0) continue;
      size_t at = hash_key(old[i].key) & mask_;
      while (short_[at].count) at = (at + 1) & mask_;
      short_[at] = old[i];
    }
  }

  void grow_long() {
    std::vector<Long> old(long_.size() * 2);
    old.swap(long_);
    size_t mask = long_.size() - 1;
    for (const Long& e : old) {
      if (!e.hash) continue;
      size_t at = e.hash >> 8 & mask;
      while (long_[at].hash) at = (at + 1) & mask;
      long_[at] = e;
    }
  }

  HugeArray<Short> short_{size_t(1) << 12};
  size_t mask_ = (size_t(1) << 12) - 1, used_ = 0, long_used_ = 0;
  std::vector<Long> long_ = std::vector<Long>(1 << 10);
  std::string texts_;
  uint32_t ends_[kBatch + Splitter::kSlack];
};

}  // namespace

WordList count_words(const std::vector<std::string_view>& texts,
                     const Splitter& splitter, const AddedTokens& added,
                     int threads,
                     const std::function<void(uint64_t)>& progress) {
  TextCursor cursor(texts, splitter, added, size_t(1) << 18);
  std::vector<Counter> counters(size_t(std::max(1, threads)));
  std::mutex mutex;
  auto next = [&](TextRange& r) {
    std::lock_guard lock(mutex);
    if (!cursor.next(r)) return false;
    if (progress) progress(r.base + uint64_t(r.stop - r.begin));
    return true;
  };
  ThreadPool pool(int(counters.size()));
  pool.run(int64_t(counters.size()), [&](int64_t task, int) {
    TextRange r;
    while (next(r)) counters[size_t(task)].count(splitter, r);
  });
  // In pairs, so that many threads share the work.
  for (size_t step = 1; step < counters.size(); step *= 2) {
    size_t pairs = (counters.size() + step - 1) / (2 * step);
    pool.run(int64_t(pairs), [&](int64_t i, int) {
      size_t into = size_t(i) * 2 * step;
      if (into + step >= counters.size()) return;
      counters[into].add_all(counters[into + step]);
      counters[into + step] = Counter();
    });
  }
  return std::move(counters[0]).list();
}

}  // namespace moec::bpe
