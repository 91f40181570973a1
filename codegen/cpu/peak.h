// What this machine can do, measured by generated kernels on one thread: the
// denominators of every share of peak that moec prints.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace moec {

class KernelLibrary;
class ThreadPool;

struct Peak {
  double f32 = 0;             // FLOP/s of independent FMA chains in registers
  double bf16_dot = 0;        // of vdpbf16ps; 0 where there is none
  double bf16_tile = 0;       // of tdpbf16ps; 0 where there is none
  double bf16 = 0;            // the best rate that bf16 operands have here
  double read = 0, copy = 0;  // bytes/s of a stream beyond the caches
};

// All of them, spending about `seconds` on each;
// the best of many slices of thread CPU time, so that other load on the
// machine does not lower it.
Peak measure_peak(KernelLibrary&, double seconds = 0.05);

// The f32 or the best bf16 rate alone, in a few milliseconds: to be interleaved
// with what is compared with it.
double measure_flops(KernelLibrary&, bool bf16, double seconds = 0.005);

// The same per cycle of the core.
double measure_flops_per_cycle(KernelLibrary&, bool bf16);

// Bytes/s at which all threads of the pool together read `data`, in the order
// of kernels that stream weights; the best of some rounds of wall time.
double measure_read(KernelLibrary&, ThreadPool&, std::span<std::byte> data);

// CPU time of this thread in seconds.
double thread_seconds();

// Cycles/s of this core at this moment, from ten microseconds of dependent
// multiplications (3 cycles each on every x86-64 since Nehalem and Zen). A core
// under a power limit is slower the more its kernel moves, so that a rate of
// another moment is no measure for it.
double core_clock();

}  // namespace moec
