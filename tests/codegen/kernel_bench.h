// Runs kernels of a launch plan on one thread, for tests and benches.
#pragma once
#include <ctime>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "codegen/cpu/jit.h"

namespace moec {

inline double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

inline std::vector<float> random_floats(size_t n, unsigned seed,
                                        float scale = 1) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(n);
  for (float& x : v) x = scale * normal(gen);
  return v;
}

// All tasks of one launch, in order. The scratch starts as NaN, so that a
// kernel that reads what it has not written is found out.
struct OneThread {
  std::vector<std::byte> memory;
  void run(KernelFn fn, const KernelSpec& spec, std::vector<void*> buffers) {
    const size_t need = size_t(spec.scratch_bytes) + 64;
    if (memory.size() < need) memory.assign(need, std::byte(0xff));
    auto at = reinterpret_cast<uintptr_t>(memory.data());
    auto* scratch = reinterpret_cast<std::byte*>((at + 63) / 64 * 64);
    for (int64_t t = 0; t < spec.tasks; ++t)
      fn(reinterpret_cast<std::byte* const*>(buffers.data()), t, scratch);
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

// f32 FLOP/s of one core: independent chains of FMA, best of several.
inline double measure_peak(KernelLibrary& lib) {
  const int chains = 12;
  const int64_t steps = 100000;
  const Target& t = lib.target();
  KernelFn fn = lib.get(KernelSpec{
      .key = "bench peak fma", .emit = [&](Emit& e) {
        Vs v;
        for (int i = 0; i < chains; ++i)
          v.push_back(e.splat(e.f(1e-9 * (i + 1))));
        V x = e.vload(DType::F32, e.buffer(0));
        v = e.loop(e.i(0), e.i(steps), 1, v, [&](V, Vs c) {
          for (V& s : c) s = e.fma(s, x, x);
          return c;
        });
        for (int i = 0; i < chains; ++i)
          e.vstore(DType::F32, v[i], e.at(e.buffer(0), 16 * (i + 1)));
      }});
  std::vector<float> data(16 * (chains + 1), 0.5f);
  void* p = data.data();
  double best = 0;
  for (int r = 0; r < 10; ++r) {
    double start = thread_seconds();
    fn(reinterpret_cast<std::byte* const*>(&p), 0, nullptr);
    best = std::max(best, 2.0 * double(chains * steps * t.lanes) /
                              (thread_seconds() - start));
  }
  return best;
}

}  // namespace moec
