#include "codegen/cpu/kernel_timer.h"

#include <algorithm>

#include "codegen/cpu/peak.h"

namespace moec {

namespace {

constexpr double kSlice = 0.4e-3;  // seconds: far above the clock's jitter

struct Run {
  TimedKernel& kernel;
  KernelFn fn;
  std::byte* scratch;
  int repeat = 1;
  int64_t slice = 0;
  std::vector<double> best = {};

  double time(int64_t from, int64_t to) const {
    double start = thread_seconds();
    for (int r = 0; r < repeat; ++r)
      for (int64_t t = from; t < to; ++t) fn(kernel.buffers.data(), t, scratch);
    return (thread_seconds() - start) / repeat;
  }
};

}  // namespace

double time_kernels(KernelLibrary& lib, std::vector<TimedKernel>& kernels,
                    bool bf16, double seconds) {
  int64_t bytes = 0;
  for (auto& k : kernels) bytes = std::max(bytes, k.spec.scratch_bytes);
  std::vector<std::byte> memory(size_t(bytes) + 64);
  auto at = (reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64;
  std::vector<Run> runs;
  for (auto& k : kernels) {
    const int64_t tasks = k.spec.tasks;
    Run r{k, lib.get(k.spec), reinterpret_cast<std::byte*>(at)};
    r.time(0, tasks);
    const double whole = std::max(r.time(0, tasks), 1e-7);
    r.slice = std::max<int64_t>(1, int64_t(kSlice / whole * double(tasks)));
    r.repeat = std::max(1, int(kSlice / whole));
    r.best.assign(size_t((tasks + r.slice - 1) / r.slice), 1e9);
    runs.push_back(std::move(r));
  }
  double spent = 0, peak = 0;
  for (int round = 0; round < 5 || spent < seconds; ++round) {
    if (round % 8 == 0) peak = std::max(peak, measure_flops(lib, bf16, 0.002));
    for (Run& r : runs)
      for (size_t i = 0; i < r.best.size(); ++i) {
        int64_t from = int64_t(i) * r.slice;
        double took =
            r.time(from, std::min(from + r.slice, r.kernel.spec.tasks));
        r.best[i] = std::min(r.best[i], took), spent += took * r.repeat;
      }
  }
  for (Run& r : runs) {
    r.kernel.seconds = 0;
    for (double b : r.best) r.kernel.seconds += b;
  }
  return peak;
}

}  // namespace moec
