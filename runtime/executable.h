// Runs a compiled Program on host memory with a thread pool.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/abi.h"
#include "runtime/buffer.h"
#include "runtime/trace.h"
#include "runtime/watch.h"
#include "support/thread_pool.h"

namespace moec {

// Temporaries. Executables that never run at the same time share one, so that
// a train step and its evaluation need the larger of the two only.
class Workspace {
 public:
  // Makes room; what the arena held is lost where it grows.
  void reserve(int64_t arena_bytes, int64_t scratch_bytes, int threads);
  std::byte* arena() { return arena_.data(); }
  std::byte* scratch(int thread) {
    return scratch_.data() + thread * scratch_stride_;
  }
  int64_t bytes() const { return arena_.size() + scratch_.size(); }

 private:
  Buffer arena_, scratch_;
  int64_t scratch_stride_ = 0;
};

class Executable {
 public:
  // `program` owns what its kernels need (alias the pointer to hold a JIT);
  // `pool` must outlive this. Without `workspace` it has its own.
  Executable(std::shared_ptr<const Program> program, ThreadPool& pool,
             std::shared_ptr<Workspace> workspace = nullptr);

  const Program& program() const { return *program_; }

  // One call of the function. Every buffer has the size its TensorSpec states
  // and a 64-byte aligned address. A donated input and its output are the
  // same memory; other outputs share nothing with anything.
  using Bytes = std::span<std::byte>;
  void run(std::span<const Bytes> inputs, std::span<const Bytes> outputs);

  // Records one span per launch until set to null; `trace` must outlive that.
  void set_trace(Trace* trace) { trace_ = trace; }
  // Called with every result, in the order of the launches; empty: not.
  void set_watch(Watch watch) { watch_ = std::move(watch); }

 private:
  void check(std::span<const Bytes> inputs,
             std::span<const Bytes> outputs) const;
  void resolve(std::span<const Bytes> inputs, std::span<const Bytes> outputs);
  std::byte* address(const BufferRef& ref, std::span<const Bytes> inputs,
                     std::span<const Bytes> outputs) const;

  std::shared_ptr<const Program> program_;
  ThreadPool& pool_;
  std::shared_ptr<Workspace> workspace_;
  Trace* trace_ = nullptr;
  Watch watch_;
  // The addresses of every launch's buffers, launch after launch.
  std::vector<std::byte*> table_;
};

// One part of the memory that a run needs.
struct MemoryItem {
  std::string what;
  int64_t bytes = 0;
};

// Arena, scratch of all threads, constants, inputs, and the outputs that do
// not reuse a donated input.
std::vector<MemoryItem> memory_items(const Program& program, int threads);

// A UserError naming the need, what is free and the largest items if the sum
// is more than `available` bytes (see available_memory()).
void require_memory(std::span<const MemoryItem> items, int64_t available);

}  // namespace moec
