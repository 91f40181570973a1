// Compiles kernels: deduplicated by key, taken from the disk cache where
// possible, else emitted and compiled on a few threads, and linked into this
// process. The cache folder is MOEC_CACHE_DIR, else $XDG_CACHE_HOME/moec or
// ~/.cache/moec; entries depend on the kernel's key, the target, LLVM's
// version and the sources of codegen/ this binary was built from.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "codegen/cpu/kernel.h"
#include "codegen/cpu/target.h"
#include "runtime/abi.h"

namespace moec {

struct CompileStats {
  int kernels = 0;   // distinct keys asked for that were new to the library
  int compiled = 0;  // of these, not found in the cache
  double seconds = 0;
};

// Thread-safe. Functions stay valid while the library lives.
class KernelLibrary {
 public:
  // An empty cache_dir means no disk cache.
  KernelLibrary(const Target&, std::string cache_dir);
  explicit KernelLibrary(const Target& = host_target());
  ~KernelLibrary();

  const Target& target() const;
  std::vector<KernelFn> get(std::span<const KernelSpec>,
                            CompileStats* = nullptr);
  KernelFn get(const KernelSpec&);

  // The symbol of a kernel, as perf, gdb and the dumps show it.
  std::string symbol(const KernelSpec&) const;
  // LLVM IR and assembly text of one kernel, compiled afresh.
  std::string llvm_ir(const KernelSpec&) const;
  std::string assembly(const KernelSpec&) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> p_;
};

std::string default_cache_dir();

}  // namespace moec
