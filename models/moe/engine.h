// Compiled functions of a model on named tensors: what trainer, generation and
// evaluation run.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/parameters.h"
#include "models/moe/config.h"
#include "runtime/abi.h"
#include "runtime/buffer.h"
#include "runtime/watch.h"

namespace moec {
class CompiledFunction;
class Graph;
struct PipelineOptions;
class Trace;
}  // namespace moec

namespace moec::moe {

struct EngineOptions {
  std::string device = "cpu";  // cpu ref ref64
  int threads = 0;             // 0: the available cores
  std::string fuse = "on", moe = "fused", dtype = "f32";
  bool remat = false;
  // Every pass's text goes to DUMP_TO/FUNCTION/NN_pass.ir; passes by name or
  // number cut the pipeline (see RunOptions).
  std::string dump_to, from_pass, to_pass;
};
// Those that the config states.
EngineOptions engine_options(const Config& config);
// The same for passes; a UsageError for what they do not know.
PipelineOptions pipeline_options(const EngineOptions& options);

// Named tensors in memory: parameters and optimizer state.
class State {
 public:
  // Zeroed; an existing one must have the same type.
  std::span<std::byte> add(const TensorSpec& spec);
  // New, and never written to: memory that is kept alive by `owner`.
  void add_view(const TensorSpec& spec, std::span<const std::byte> memory,
                std::shared_ptr<const void> owner);
  std::span<float> f32(std::string_view name);  // must be there
  bool has(std::string_view name) const { return find(name) >= 0; }
  struct Entry {
    TensorSpec spec;
    Buffer data;
  };
  const std::vector<Entry>& all() const { return all_; }
  std::vector<Entry>& all() { return all_; }

 private:
  friend class Function;
  int find(std::string_view name) const;
  std::vector<Entry> all_;
};
// Adds all parameters with their initial values, as they are stored.
void init_parameters(State& state, const dsl::Parameters& params,
                     uint64_t seed);

// One compiled function. Inputs and outputs that a bound State holds stand
// there; an output with an input's name replaces it in place. All others are
// the function's own.
class Function {
 public:
  Function(Function&&) noexcept;
  Function& operator=(Function&&) noexcept;
  ~Function();

  // The state must outlive this; types must agree. States add to each other.
  void bind(State& state);
  void run();
  template <class T>
  std::span<T> input(std::string_view name) {
    auto b = find(name, true);
    return {reinterpret_cast<T*>(b.data()), b.size() / sizeof(T)};
  }
  template <class T>
  std::span<const T> output(std::string_view name) {
    auto b = find(name, false);
    return {reinterpret_cast<const T*>(b.data()), b.size() / sizeof(T)};
  }
  const std::vector<TensorSpec>& inputs() const;
  const std::vector<TensorSpec>& outputs() const;
  // Memory of temporaries, scratch and constants.
  int64_t planned_bytes() const;
  const CompiledFunction& compiled() const;
  void set_trace(Trace* trace);
  void set_watch(Watch watch);

 private:
  friend class Engine;
  struct Impl;
  explicit Function(std::unique_ptr<Impl> impl);
  std::span<std::byte> find(std::string_view name, bool input);
  std::unique_ptr<Impl> impl_;
};

// Compiles functions for one device. They share threads and temporaries, so
// they run one at a time; the engine outlives them.
class Engine {
 public:
  explicit Engine(const EngineOptions& options);
  ~Engine();
  Function compile(std::unique_ptr<Graph> graph);
  // What its passes do, has_lowering included.
  const PipelineOptions& pipeline() const;
  const EngineOptions& options() const;
  int threads() const;
  // FLOP/s of all threads at the FMA peak of the dtype; 0 on ref devices.
  double measure_peak();
  // Bytes/s at which all threads together read `bytes`; 0 on ref devices.
  double measure_bandwidth(int64_t bytes);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moec::moe
