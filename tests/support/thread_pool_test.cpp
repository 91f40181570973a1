#include "support/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/test.h"

using namespace moec;

TEST_CASE("pool: every task once, any number of threads") {
  for (int threads : {1, 2, 3, 8, 64}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int64_t tasks : {0, 1, 2, 7, 100, 1000}) {
      std::vector<int> count(size_t(tasks), 0);
      std::atomic<bool> bad{false};
      pool.run(tasks, [&](int64_t t, int thread) {
        ++count[size_t(t)];
        if (thread < 0 || thread >= threads) bad = true;
      });
      CHECK(!bad);
      CHECK(std::accumulate(count.begin(), count.end(), 0) == tasks);
      for (int c : count) REQUIRE(c == 1);
    }
  }
}

// Thousands of tiny regions, each reading what the one before wrote: a missing
// happens-before shows here, and under TSan at once.
TEST_CASE("pool: regions follow one another") {
  ThreadPool pool(3);
  std::vector<int64_t> a(64, 0), b(64, 0);
  const int rounds = 3000;
  for (int r = 0; r < rounds; ++r) {
    pool.run(64, [&](int64_t t, int) { b[size_t(t)] = a[63 - size_t(t)] + 1; });
    pool.run(64, [&](int64_t t, int) { a[size_t(t)] = b[size_t(t)]; });
    if (r % 1000 == 0)  // lets the workers fall asleep
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (int64_t v : a) CHECK(v == rounds);
}

// Two threads inside at once never share an index, or scratch would clash.
TEST_CASE("pool: a thread's index is its own") {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> busy(4);
  std::atomic<bool> clash{false};
  pool.run(2000, [&](int64_t, int thread) {
    if (busy[size_t(thread)]++ != 0) clash = true;
    for (int i = 0; i < 200; ++i) asm volatile("" ::: "memory");
    --busy[size_t(thread)];
  });
  CHECK(!clash);
}

TEST_CASE("pool: nested calls run inline, other callers take turns") {
  ThreadPool pool(2), other(2);
  std::atomic<int> inner{0}, foreign{0};
  std::atomic<bool> moved{false};
  pool.run(8, [&](int64_t, int thread) {
    pool.run(5, [&](int64_t, int t) {
      ++inner;
      if (t != thread) moved = true;
    });
    other.run(3, [&](int64_t, int) { ++foreign; });
  });
  CHECK(inner == 40);
  CHECK(foreign == 24);
  CHECK(!moved);
  std::atomic<int> sum{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      for (int r = 0; r < 200; ++r) pool.run(4, [&](int64_t, int) { ++sum; });
    });
  for (auto& t : callers) t.join();
  CHECK(sum == 3200);
}

TEST_CASE("pool: the lowest task's exception, after all tasks ran") {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::atomic<int> ran{0};
    std::string what;
    try {
      pool.run(50, [&](int64_t t, int) {
        ++ran;
        if (t % 10 == 7) throw std::runtime_error(std::to_string(t));
      });
    } catch (const std::runtime_error& e) {
      what = e.what();
    }
    CHECK(what == "7");
    CHECK(ran == 50);
    pool.run(3, [&](int64_t, int) { ++ran; });
    CHECK(ran == 53);
  }
}
