#include "codegen/cpu/kernel_bench.h"

#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/bench_turns.h"
#include "codegen/cpu/emit.h"
#include "codegen/cpu/jit.h"
#include "codegen/cpu/peak.h"

namespace moec {

namespace {

// A slice is far longer than the clock's jitter.
constexpr double kSlice = 0.4e-3;

// Tasks of one launch.
struct Slice {
  KernelFn fn;
  std::byte* const* buffers;
  int64_t from, to;
};

// What is timed as one.
struct Timed {
  std::vector<Slice> slices;
  double seconds = 1e9, cycles = 1e18;  // the best of each
};

}  // namespace

Buffer bench_buffer(int64_t bytes) {
  constexpr int64_t kHuge = 2 << 20;
  return Buffer((bytes + kHuge - 1) / kHuge * kHuge);
}

BenchRow time_launches(KernelLibrary& lib, std::string name,
                       std::span<const BoundLaunch> launches, bool bf16,
                       double seconds) {
  BenchRow row;
  row.name = std::move(name);
  int64_t scratch_bytes = 64;
  std::vector<KernelSpec> specs;
  for (const BoundLaunch& l : launches) {
    specs.push_back(l.spec);
    row.flops += l.spec.flops, row.bytes += l.spec.bytes;
    row.tasks += l.spec.tasks;
    scratch_bytes = std::max(scratch_bytes, l.spec.scratch_bytes);
  }
  const std::vector<KernelFn> fns = lib.get(specs);
  Buffer scratch = bench_buffer(scratch_bytes);
  auto time = [&](const std::vector<Slice>& all, int repeat) {
    double start = thread_seconds();
    for (int r = 0; r < repeat; ++r)
      for (const Slice& s : all)
        for (int64_t t = s.from; t < s.to; ++t)
          s.fn(s.buffers, t, scratch.data());
    return (thread_seconds() - start) / repeat;
  };
  // a first run warms up, a second one says how to cut
  std::vector<Slice> whole;
  for (size_t i = 0; i < launches.size(); ++i)
    whole.push_back(
        {fns[i], launches[i].buffers.data(), 0, launches[i].spec.tasks});
  time(whole, 1);
  std::vector<Timed> parts;
  double once = 0;
  for (Slice s : whole) {
    const int64_t tasks = s.to;
    const double took = std::max(time({s}, 1), 1e-9);
    once += took;
    auto step = std::max<int64_t>(1, int64_t(kSlice / took * double(tasks)));
    for (int64_t t = 0; t < tasks; t += step) {
      s.from = t, s.to = std::min(t + step, tasks);
      parts.push_back({{s}});
    }
  }
  // a run below a slice's length is repeated as a whole
  const int repeat = std::max(1, int(kSlice / once));
  if (repeat > 1) parts = {{whole}};
  BenchTurns* turns = bench_turns();
  double spent = 0, last = 0;
  for (int round = 0;; ++round) {
    bool more = round < 5 || spent < seconds;
    if (turns) more = turns->next(row.name, last / repeat, more);
    if (!more) break;
    last = 0;
    if (round % 8 == 0)
      row.peak = std::max(row.peak, measure_flops(lib, bf16, 0.002));
    double before = core_clock();
    for (Timed& p : parts) {
      const double took = time(p.slices, repeat), after = core_clock();
      p.seconds = std::min(p.seconds, took), last += took * repeat;
      // the faster of the two, so as to count no cycle too few
      p.cycles = std::min(p.cycles, took * std::max(before, after));
      before = after;
    }
    spent += last;
  }
  if (turns) row.speedup = turns->speedup();
  row.peak_per_cycle = measure_flops_per_cycle(lib, bf16);
  for (const Timed& p : parts) row.seconds += p.seconds, row.cycles += p.cycles;
  return row;
}

double measure_stream(KernelLibrary& lib, const StreamPattern& p,
                      double seconds) {
  constexpr int64_t kTask = 64 << 10;  // elements
  const int64_t n = std::max<int64_t>(p.bytes / 4, 256) / 64 * 64;
  const int arrays = p.in_place ? p.reads : p.reads + p.writes;
  std::vector<Buffer> memory;
  BoundLaunch l;
  for (int i = 0; i < arrays; ++i) {
    memory.push_back(bench_buffer(n * 4));
    std::ranges::fill(memory.back().as<float>(), 1.0f);  // touched
    l.buffers.push_back(memory.back().data());
  }
  l.spec.key = fmt::format("stream {} reads {} writes of {}{}", p.reads,
                           p.writes, n, p.in_place ? " in place" : "");
  l.spec.tasks = (n + kTask - 1) / kTask;
  l.spec.bytes = 4.0 * double(n) * (p.reads + p.writes);
  l.spec.emit = [p, arrays, n](Emit& e) {
    V from = e.mul(e.task(), kTask);
    V to = e.min(e.add(from, kTask), e.i(n));
    const int L = e.lanes(), unroll = 4;
    e.loop(from, to, unroll * L, [&](V k) {
      for (int u = 0; u < unroll; ++u) {
        V at = e.add(k, u * L), sum = e.splat(e.f(1e-3));
        for (int i = 0; i < p.reads; ++i)
          sum = e.add(sum, e.vload_aligned(DType::F32, e.at(e.buffer(i), at)));
        for (int i = 0; i < p.writes; ++i)
          e.vstore_aligned(DType::F32, sum, e.at(e.buffer(arrays - 1 - i), at));
      }
    });
  };
  BenchRow row = time_launches(lib, "", {&l, 1}, false, seconds);
  return row.bytes / row.seconds;
}

}  // namespace moec
