// A kernel before compilation: what lowering hands to the JIT.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

namespace moec {

class Emit;

struct KernelSpec {
  // Canonical text that fully determines the code: equal keys, equal code.
  // Starts with a short readable family name, e.g. "matmul f32 512x512x512".
  std::string key;
  // Writes the body; called only when the object cache has no entry.
  std::function<void(Emit&)> emit;
  int64_t tasks = 1;
  int64_t scratch_bytes = 0;    // per thread
  double flops = 0, bytes = 0;  // of the whole launch
};

}  // namespace moec
