// Runs emitted kernels in tests, at every feature level the host has.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/jit.h"
#include "codegen/cpu/target.h"
#include "support/error.h"

namespace moec {

// native and each forced level that this host can run.
inline std::vector<Target> test_targets() {
  std::vector<Target> out;
  for (const char* level :
       {"native", "native-noamx", "x86-64-v4", "x86-64-v3", "x86-64"}) {
    try {
      Target t = make_target(level);
      // where there are no tiles the two native levels are one
      if (t.level == "native-noamx" && !out[0].amx_bf16) continue;
      out.push_back(std::move(t));
    } catch (const UsageError&) {
    }
  }
  return out;
}

// Compiles `emit` uncached and runs one task on the buffers.
inline void run_kernel(const Target& t, const std::function<void(Emit&)>& emit,
                       std::vector<void*> buffers) {
  KernelLibrary lib(t, "");
  KernelFn fn = lib.get(KernelSpec{.key = "test", .emit = emit});
  alignas(64) static std::byte scratch[1 << 16];
  fn(reinterpret_cast<std::byte* const*>(buffers.data()), 0, scratch);
}

}  // namespace moec
