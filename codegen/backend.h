// What a device does for the compiler: it says which nodes it runs as they
// are, and turns a scheduled graph into something to call. Functions of one
// backend share its threads and temporaries, so they run one at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ir/graph.h"
#include "runtime/abi.h"
#include "runtime/watch.h"

namespace moec {

class Trace;
struct Target;

// Where the time of a compilation went, and what came out.
struct CompileInfo {
  struct Pass {
    std::string name;
    double ms = 0;
    bool changed = false;
  };
  std::vector<Pass> passes;
  double passes_s = 0, plan_s = 0, kernels_s = 0;
  int launches = 0;
  int kernels = 0;   // distinct ones
  int compiled = 0;  // of these, not found in the cache
  int64_t arena_bytes = 0, scratch_bytes = 0, constant_bytes = 0;
  double flops = 0, bytes = 0;  // of one call, as the op table states them
};

class CompiledFunction {
 public:
  using Bytes = std::span<std::byte>;
  virtual ~CompiledFunction() = default;

  const std::vector<TensorSpec>& inputs() const { return inputs_; }
  const std::vector<TensorSpec>& outputs() const { return outputs_; }
  // Per input: the output that is to be the same memory, or -1.
  const std::vector<int32_t>& donated() const { return donated_; }
  const CompileInfo& info() const { return info_; }

  // In the order of inputs() and outputs(): raw row-major memory of exactly
  // the stated bytes, 64-byte aligned.
  virtual void run(std::span<const Bytes> inputs,
                   std::span<const Bytes> outputs) = 0;

  // nullptr on devices without launches.
  virtual const Program* program() const { return nullptr; }
  virtual void set_trace(Trace*) {}
  // Called with every result of a run in order; empty: not.
  virtual void set_watch(Watch watch) = 0;
  // All kernels as "llvm" or "asm" text; empty on devices without.
  virtual std::string code(std::string_view) const { return {}; }

 protected:
  friend std::unique_ptr<CompiledFunction> compile(
      const Graph&, class Backend&, const struct CompileOptions&);
  std::vector<TensorSpec> inputs_, outputs_;
  std::vector<int32_t> donated_;
  CompileInfo info_;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual int threads() const { return 1; }
  // Whether it runs this node as it stands; others are decomposed.
  virtual bool supports(const Node&) const = 0;
  virtual std::unique_ptr<CompiledFunction> lower(std::unique_ptr<Graph>) = 0;
};

// "cpu", "ref" (the interpreter) or "ref64" (the interpreter in double); a
// UsageError names them. threads 0: as many as there are cores.
std::unique_ptr<Backend> make_backend(std::string_view device, int threads = 0);

std::unique_ptr<Backend> make_cpu_backend(int threads);
// For another feature level than that of MOEC_CPU.
std::unique_ptr<Backend> make_cpu_backend(int threads, const Target& target);
std::unique_ptr<Backend> make_reference_backend(bool f64);

// Name, type and size of arguments and results; results without a name are
// out0, out1, ...
std::vector<TensorSpec> input_specs(const Graph&);
std::vector<TensorSpec> output_specs(const Graph&);

}  // namespace moec
