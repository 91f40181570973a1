// A pool for many tiny parallel regions (dispatch and join in 0.2 us).
//
// Tasks are claimed one by one from a counter, and the caller, who works too,
// waits only for workers that entered the region: one that the system has not
// scheduled in time finds the region closed and delays nobody. Waiting is a
// spin of 20 us, then a futex. If the ends of regions keep waiting for a
// worker far longer than a task takes (10 ms lost, a quarter of the time
// forgiven), another process holds its core; workers then stay out for 64 ms,
// doubling to 1 s while that goes on.
#pragma once
#include <cstdint>
#include <memory>

#include "support/function_ref.h"

namespace moec {

class ThreadPool {
 public:
  // `threads` >= 1 counts the caller; threads - 1 workers are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Runs fn(task, thread) for every task in [0, tasks), in any order, and
  // returns when all are done. `thread` in [0, threads()) is the executing
  // thread's own, for scratch space. A call from inside a task runs inline
  // with that task's thread. Calls from several threads take turns. If tasks
  // throw, the others still run and the lowest such task's exception leaves
  // run().
  void run(int64_t tasks, FunctionRef<void(int64_t task, int thread)> fn);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moec
