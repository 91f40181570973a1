// What codegen hands to the runtime: plain structs, no IR, no LLVM.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "support/dtype.h"

namespace moec {

// Every compiled kernel has this one signature. `buffers` holds the addresses
// of the launch's buffers (operands, results, then the workspace if there is
// one); a launch runs `task` = 0 .. tasks-1, in any order and on any thread;
// tasks of one launch write disjoint memory. `scratch` is private to the
// thread, 64-byte aligned, of at least the launch's scratch_bytes.
using KernelFn = void (*)(std::byte* const* buffers, int64_t task,
                          std::byte* scratch);

// Where a buffer of a program lives.
enum class Space : uint8_t { Arena, Input, Output, Constant };

struct BufferRef {
  Space space = Space::Arena;
  int32_t index = 0;   // of the input, output or constant
  int64_t offset = 0;  // bytes into the arena
};

// A result that is whole once its launch has run.
struct LaunchResult {
  BufferRef at;
  DType dtype = DType::F32;
  int64_t bytes = 0;
};

struct Launch {
  KernelFn fn = nullptr;
  std::vector<BufferRef> buffers;
  int64_t tasks = 1;
  int64_t scratch_bytes = 0;
  // Cost as the op table states it, for traces and benches.
  double flops = 0, bytes = 0;
  int32_t kernel = 0;  // index into Program::kernel_names
  std::string label;   // op and scope path, e.g. "matmul layer0/attn"
  // May run together with the launches before it, back to the last that may
  // not: they share no memory that one of them writes.
  bool joins = false;
  std::string source = {};  // the model's line, "ffn.cpp:41", or empty
  std::vector<LaunchResult> results = {};
};

struct TensorSpec {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> dims;
  int64_t bytes = 0;
};

// One compiled function. An input with donated[i] >= 0 shares its memory with
// that output: the caller passes one buffer for both.
struct Program {
  std::string name;
  std::vector<TensorSpec> inputs, outputs;
  std::vector<int32_t> donated;  // per input: output index or -1
  std::vector<std::vector<std::byte>> constants;
  std::vector<Launch> launches;
  std::vector<std::string> kernel_names;
  int64_t arena_bytes = 0;    // temporaries and workspace
  int64_t scratch_bytes = 0;  // per thread, the largest of all launches
};

}  // namespace moec
