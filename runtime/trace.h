// Times of launches: a Chrome trace, and a table by kernel.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moec {

struct Launch;
struct Program;

// One launch that was run. Times in seconds of a steady clock.
struct TraceSpan {
  std::string label, kernel, function;
  double start = 0, end = 0, flops = 0, bytes = 0;
  int64_t tasks = 0;
};

// All launches of one kernel together.
struct KernelTime {
  std::string kernel;
  int64_t calls = 0;
  double seconds = 0, flops = 0, bytes = 0;
};

class Trace {
 public:
  void add(const Program& program, const Launch& launch, double start,
           double end);
  const std::vector<TraceSpan>& spans() const { return spans_; }
  void clear() { spans_.clear(); }

  // By kernel, the most time first; equal times by name.
  std::vector<KernelTime> by_kernel() const;
  // by_kernel() as text: kernel, calls, ms, share, GFLOP/s, GB/s. With
  // `peak_flops` (per second, of all threads) > 0 also the share of it.
  std::string table(double peak_flops = 0) const;
  // For chrome://tracing or ui.perfetto.dev; times relative to the first.
  std::string chrome_json() const;

 private:
  std::vector<TraceSpan> spans_;
};

}  // namespace moec
