// One text over several threads. A shared cursor hands out ranges that begin
// and end at safe cuts; whoever finishes the range that is next in order passes
// it on, with those behind it that wait.
#include <condition_variable>
#include <exception>
#include <map>
#include <thread>

#include "tokenizer/encoder.h"
#include "tokenizer/nfc.h"
#include "tokenizer/text_cursor.h"

namespace moec::bpe {
namespace {

// Its ids leave room in the second-level cache for the tables.
constexpr size_t kRange = size_t(1) << 16;

}  // namespace

void encode_parallel(EncoderPool& pool, std::string_view text, bool specials,
                     int threads,
                     FunctionRef<void(std::span<const uint32_t>)> sink) {
  const Model& m = pool.model();
  std::string normal;
  if (m.vocabulary.nfc) text = to_nfc(text, normal);
  TextCursor cursor({&text, 1}, m.splitter,
                    specials ? m.all_added : m.plain_added, kRange);
  std::mutex mutex;
  std::condition_variable moved;
  std::map<size_t, std::vector<uint32_t>> waiting;
  std::vector<std::vector<uint32_t>> spare;
  std::exception_ptr failure;
  size_t turn = 0;
  bool draining = false;
  // So that a slow range does not let the others pile up ids without bound.
  const size_t ahead = size_t(threads) * 4;

  auto work = [&] {
    EncoderPool::Lease encoder(pool);
    std::unique_lock lock(mutex);
    TextRange t;
    while (!failure) {
      if (!cursor.next(t)) break;
      moved.wait(lock, [&] { return t.index < turn + ahead || failure; });
      if (failure) break;
      lock.unlock();
      std::span<const uint32_t> ids;
      std::exception_ptr thrown;
      try {
        ids = encoder->encode_range(t.begin, t.stop, t.end);
      } catch (...) {
        thrown = std::current_exception();
      }
      lock.lock();
      if (thrown && !failure) failure = thrown;
      if (failure) break;
      if (t.index != turn || draining) {
        auto& w = waiting[t.index];
        if (!spare.empty()) {
          w = std::move(spare.back());
          spare.pop_back();
        }
        w.assign(ids.begin(), ids.end());
        if (t.added != kNone) w.push_back(t.added);
        if (draining || waiting.begin()->first != turn) continue;
      }
      draining = true;
      auto pass = [&](std::span<const uint32_t> part) {
        lock.unlock();
        try {
          sink(part);
        } catch (...) {
          thrown = std::current_exception();
        }
        lock.lock();
        if (thrown) failure = thrown;
      };
      if (t.index == turn) {
        pass(ids);
        if (t.added != kNone) pass({&t.added, 1});
        ++turn;
      }
      while (!failure && !waiting.empty() && waiting.begin()->first == turn) {
        auto part = std::move(waiting.begin()->second);
        waiting.erase(waiting.begin());
        pass(part);
        spare.push_back(std::move(part));
        ++turn;
      }
      draining = false;
      moved.notify_all();
    }
    moved.notify_all();
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads && text.size() > kRange; ++i)
      others.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace moec::bpe
