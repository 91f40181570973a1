// One text over several threads. A shared cursor hands out ranges that begin
// and end at safe cuts; whoever finishes the range that is next in order passes
// it on, with those behind it that wait.
#include <condition_variable>
#include <exception>
#include <map>
#include <thread>

#include "tokenizer/encoder.h"

namespace moec::bpe {
namespace {

constexpr size_t kRange = size_t(1) << 18;

struct Task {
  size_t index;
  const uint8_t *begin, *stop, *end;
  uint32_t added;  // the added token that follows, or kNone
};

// Hands out the text in order; not thread-safe.
class Cursor {
 public:
  Cursor(const Model& m, std::string_view text, bool specials)
      : model_(m),
        added_(specials ? m.all_added : m.plain_added),
        text_(text),
        match_(added_.find(text, 0)),
        done_(text.empty()) {}

  bool next(Task& t) {
    if (done_) return false;
    auto begin = reinterpret_cast<const uint8_t*>(text_.data());
    const uint8_t *p = begin + at_, *end = begin + match_.begin;
    const uint8_t* stop = size_t(end - p) <= kRange * 2
                              ? end
                              : model_.splitter.safe_cut(p, p + kRange, end);
    t = {index_++, p, stop, end, stop == end ? match_.id : kNone};
    if (stop != end) {
      at_ = size_t(stop - begin);
    } else {
      at_ = match_.end;
      done_ = at_ == text_.size();
      if (!done_) match_ = added_.find(text_, at_);
    }
    return true;
  }

 private:
  const Model& model_;
  const AddedTokens& added_;
  std::string_view text_;
  size_t at_ = 0, index_ = 0;
  AddedTokens::Match match_;
  bool done_;
};

}  // namespace

void encode_parallel(EncoderPool& pool, std::string_view text, bool specials,
                     int threads,
                     FunctionRef<void(std::span<const uint32_t>)> sink) {
  Cursor cursor(pool.model(), text, specials);
  std::mutex mutex;
  std::condition_variable moved;
  std::map<size_t, std::vector<uint32_t>> waiting;
  std::exception_ptr failure;
  size_t turn = 0;
  bool draining = false;
  // So that a slow range does not let the others pile up ids without bound.
  const size_t ahead = size_t(threads) * 4;

  auto work = [&] {
    EncoderPool::Lease encoder(pool);
    std::unique_lock lock(mutex);
    Task t;
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
