// Measuring kernels on one thread, as shares of what the machine can do,
// measured in the same run: the common part of every `moec bench` of kernels.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "codegen/cpu/kernel.h"
#include "runtime/buffer.h"

namespace moec {

class KernelLibrary;

// Memory for a bench, in whole huge pages: how single ones lie in the caches
// differs from run to run.
Buffer bench_buffer(int64_t bytes);

// A launch with its memory.
struct BoundLaunch {
  KernelSpec spec;
  std::vector<std::byte*> buffers;
};

// One line of a table.
struct BenchRow {
  std::string name;
  double seconds = 0;           // of one run on one thread
  double flops = 0, bytes = 0;  // of one run
  double peak = 0;  // FLOP/s that the dtype has here; 0: not bound by it
  double peak_per_cycle = 0;  // the same as FLOP a cycle
  double cycles = 0;          // of one run; the core's clock varies
  double stream = 0;  // bytes/s of a stream of the same pattern; 0: none
  int64_t tasks = 0;
  double speedup = 0;  // over another build that took turns; 0: none

  double peak_share() const { return peak ? flops / seconds / peak : 0; }
  // Share of the FLOP that the dtype has in as many cycles: what the code is
  // worth, where a power limit lowers the clock under it.
  double cycle_share() const {
    return peak ? flops / cycles / peak_per_cycle : 0;
  }
  double stream_share() const { return stream ? bytes / seconds / stream : 0; }
};

// Runs the launches in order, spending about `seconds`; CPU time of the
// thread. Slices of a launch's tasks are timed apart and the best of each is
// added up: other load on the machine rarely spares a whole run. The peak is
// measured in between, the clock before and after each slice. Rounds alternate
// with those of bench_turns(), if there is one. Sets all but stream.
BenchRow time_launches(KernelLibrary&, std::string name,
                       std::span<const BoundLaunch>, bool bf16, double seconds);

// A loop over `reads` arrays of f32, each of `bytes`, that writes `writes` more
// or, in place, some of them, without any arithmetic worth the name.
struct StreamPattern {
  int reads = 1, writes = 1;
  int64_t bytes = 0;
  bool in_place = false;

  double total() const { return double(reads + writes) * double(bytes); }
};
// Bytes/s of it.
double measure_stream(KernelLibrary&, const StreamPattern&, double seconds);

}  // namespace moec
