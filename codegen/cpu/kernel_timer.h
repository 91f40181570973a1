// How long kernels take on one thread, for the benches: slices of tasks are
// timed apart and the best of each is added up, since other load on the machine
// rarely spares a whole launch. The peak is measured in between.
#pragma once
#include <cstddef>
#include <vector>

#include "codegen/cpu/jit.h"

namespace moec {

struct TimedKernel {
  KernelSpec spec;
  std::vector<std::byte*> buffers;
  double seconds = 0;  // the result, of one launch
};

// Runs the kernels in turn for about `seconds`; returns the peak of the dtype.
double time_kernels(KernelLibrary&, std::vector<TimedKernel>&, bool bf16,
                    double seconds);

}  // namespace moec
