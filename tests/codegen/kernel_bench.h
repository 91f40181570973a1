// Runs kernels of a launch plan on one thread, for tests and benches.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <random>
#include <vector>

#include "codegen/cpu/jit.h"
#include "codegen/cpu/peak.h"

namespace moec {

// Buffers as the runtime gives them: 64-byte aligned.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) {
    return static_cast<T*>(operator new(n * sizeof(T), std::align_val_t(64)));
  }
  void deallocate(T* p, size_t) { operator delete(p, std::align_val_t(64)); }
  bool operator==(const Aligned&) const { return true; }
};
using Floats = std::vector<float, Aligned<float>>;

inline Floats random_floats(size_t n, unsigned seed, float scale = 1) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  Floats v(n);
  for (float& x : v) x = scale * normal(gen);
  return v;
}

// All tasks of one launch, in order or from the last one on. The scratch starts
// as NaN, so that a kernel that reads what it has not written is found out.
struct OneThread {
  std::vector<std::byte> memory = {};
  bool reversed = false;
  void run(KernelFn fn, const KernelSpec& spec, std::vector<void*> buffers) {
    const size_t need = size_t(spec.scratch_bytes) + 64;
    if (memory.size() < need) memory.assign(need, std::byte(0xff));
    auto at = reinterpret_cast<uintptr_t>(memory.data());
    auto* scratch = reinterpret_cast<std::byte*>((at + 63) / 64 * 64);
    for (int64_t t = 0; t < spec.tasks; ++t)
      fn(reinterpret_cast<std::byte* const*>(buffers.data()),
         reversed ? spec.tasks - 1 - t : t, scratch);
  }
};

// Relative error of the norm of a difference.
template <class A, class B>
double relative_error(const A& want, const B& got) {
  double error = 0, norm = 1e-300;
  for (size_t i = 0; i < want.size(); ++i) {
    double d = double(want[i]) - double(got[i]);
    error += d * d, norm += double(want[i]) * double(want[i]);
  }
  return std::sqrt(error / norm);
}

}  // namespace moec
