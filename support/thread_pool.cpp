#include "support/thread_pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "support/error.h"

namespace moec {
namespace {

using Word = std::atomic<uint32_t>;

void futex_wait(Word& a, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&a), FUTEX_WAIT_PRIVATE, value,
          nullptr, nullptr, 0);
}

void futex_wake(Word& a, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&a), FUTEX_WAKE_PRIVATE, count,
          nullptr, nullptr, 0);
}

// Time-stamp ticks of one microsecond; measured once.
uint64_t ticks_per_us() {
  static const uint64_t ticks = [] {
    using Clock = std::chrono::steady_clock;
    auto t0 = Clock::now();
    uint64_t c0 = __rdtsc();
    while (Clock::now() - t0 < std::chrono::microseconds(200)) {
    }
    std::chrono::duration<double, std::micro> us = Clock::now() - t0;
    return std::max<uint64_t>(1, uint64_t(double(__rdtsc() - c0) / us.count()));
  }();
  return ticks;
}

// The pool whose task this thread executes, and its thread index there.
thread_local const void* current_pool = nullptr;
thread_local int current_thread = 0;

}  // namespace

struct ThreadPool::Impl {
  static constexpr uint32_t kOpen = 1u << 31;
  using Fn = FunctionRef<void(int64_t, int)>;

  alignas(64) Word epoch{0};  // of the region; workers sleep on it
  alignas(64) Word gate{0};   // kOpen | workers inside; the caller sleeps on it
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  // Written by the caller while the gate is shut and nobody is inside.
  alignas(64) const Fn* fn = nullptr;
  int64_t tasks = 0;
  uint64_t mute_until = 0, mute = 0;
  uint64_t debt = 0, settled = __rdtsc();
  std::mutex callers, errors;
  std::exception_ptr error;
  int64_t error_task = 0;
  uint64_t us = ticks_per_us();
  std::vector<std::thread> workers;

  template <class C>
  bool spin(C done) const {
    uint64_t t = __rdtsc();
    while (!done()) {
      if (__rdtsc() - t > 20 * us) return false;
      _mm_pause();
    }
    return true;
  }

  void call(const Fn& f, int64_t task, int thread) {
    try {
      f(task, thread);
    } catch (...) {
      std::lock_guard lock(errors);
      if (error && error_task < task) return;
      error = std::current_exception();
      error_task = task;
    }
  }

  int64_t drain(int thread) {
    int64_t done = 0;
    for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;
         ++done)
      call(*fn, t, thread);
    return done;
  }

  void work(int thread) {
    current_pool = this;
    current_thread = thread;
    for (uint32_t seen = 0;;) {
      auto fresh = [&] {
        return epoch.load(std::memory_order_acquire) != seen;
      };
      if (!spin(fresh)) {
        ++sleepers;
        while (epoch.load() == seen) futex_wait(epoch, seen);
        --sleepers;
      }
      seen = epoch.load(std::memory_order_acquire);
      if (stop) return;
      uint32_t g = gate.load(std::memory_order_relaxed);
      while ((g & kOpen) &&
             !gate.compare_exchange_weak(g, g + 1, std::memory_order_acquire,
                                         std::memory_order_relaxed)) {
      }
      if (!(g & kOpen)) continue;  // late: nobody waits for this worker
      drain(thread);
      if (gate.fetch_sub(1, std::memory_order_acq_rel) == 1)
        futex_wake(gate, 1);  // shut, and the last one out
    }
  }

  void run_alone(const Fn& f, int64_t n, int thread) {
    for (int64_t t = 0; t < n; ++t) call(f, t, thread);
  }

  void run_together(const Fn& f, int64_t n) {
    fn = &f;
    tasks = n;
    next.store(0, std::memory_order_relaxed);
    gate.store(kOpen, std::memory_order_release);
    epoch.fetch_add(1);
    if (int idle = sleepers.load())
      futex_wake(epoch, int(std::min<int64_t>(idle, n - 1)));
    uint64_t start = __rdtsc();
    int64_t done = drain(0);
    uint32_t inside =
        gate.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
    if (inside == 0) return;
    uint64_t t0 = __rdtsc();
    if (!spin([&] { return gate.load(std::memory_order_acquire) == 0; }))
      while ((inside = gate.load(std::memory_order_acquire)))
        futex_wait(gate, inside);
    uint64_t t1 = __rdtsc();
    // Waiting for a task or two is the normal end of a region of long tasks.
    uint64_t task_ticks = (t0 - start) / uint64_t(std::max<int64_t>(done, 1));
    uint64_t normal = std::max(300 * us, 4 * task_ticks);
    settle(t1, t1 - t0 > normal ? t1 - t0 - normal : 0);
  }

  // Lost time leaks away at a quarter of the clock: a hiccup is forgiven, a
  // core that another process shares is not.
  void settle(uint64_t now, uint64_t lost) {
    uint64_t leak = (now - settled) / 4;
    debt = (debt > leak ? debt - leak : 0) + lost;
    settled = now;
    if (debt > 10000 * us) {
      bool again = mute && now < mute_until + mute;
      mute = again ? std::min(2 * mute, 1000000 * us) : 64000 * us;
      mute_until = now + mute;
      debt = 0;
    }
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  MOEC_CHECK(threads >= 1 && threads <= 1024, "{} threads", threads);
  for (int i = 1; i < threads; ++i)
    impl_->workers.emplace_back([this, i] { impl_->work(i); });
}

ThreadPool::~ThreadPool() {
  impl_->stop = true;
  impl_->epoch.fetch_add(1);
  futex_wake(impl_->epoch, INT_MAX);
  for (auto& t : impl_->workers) t.join();
}

int ThreadPool::threads() const { return int(impl_->workers.size()) + 1; }

void ThreadPool::run(int64_t tasks,
                     FunctionRef<void(int64_t task, int thread)> fn) {
  Impl& p = *impl_;
  if (current_pool == &p) {
    for (int64_t t = 0; t < tasks; ++t) fn(t, current_thread);
    return;
  }
  std::lock_guard lock(p.callers);
  const void* outer_pool = std::exchange(current_pool, &p);
  int outer_thread = std::exchange(current_thread, 0);
  bool muted = p.mute_until && __rdtsc() < p.mute_until;
  if (tasks <= 1 || p.workers.empty() || muted)
    p.run_alone(fn, tasks, 0);
  else
    p.run_together(fn, tasks);
  current_pool = outer_pool;
  current_thread = outer_thread;
  if (p.error) std::rethrow_exception(std::exchange(p.error, nullptr));
}

}  // namespace moec
