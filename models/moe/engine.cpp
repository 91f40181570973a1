#include "models/moe/engine.h"

#include <algorithm>
#include <chrono>

#include "codegen/compile.h"
#include "codegen/cpu/jit.h"
#include "codegen/cpu/peak.h"
#include "passes/dump.h"
#include "support/debug.h"
#include "support/error.h"
#include "support/thread_pool.h"

namespace moec::moe {

EngineOptions engine_options(const Config& c) {
  EngineOptions o;
  o.fuse = c.compile.fuse;
  o.moe = c.compile.moe;
  o.remat = c.compile.remat;
  o.dtype = c.train.dtype;
  return o;
}

PipelineOptions pipeline_options(const EngineOptions& o) {
  PipelineOptions p;
  p.fuse = FusionSet::parse(o.fuse);
  p.moe = parse_moe_form(o.moe);
  p.compute_dtype = o.dtype == "bf16" ? DType::BF16 : DType::F32;
  p.remat = o.remat;
  return p;
}

std::span<std::byte> State::add(const TensorSpec& spec) {
  int i = find(spec.name);
  if (i < 0) {
    i = int(all_.size());
    all_.push_back({spec, Buffer(spec.bytes)});
  }
  auto& e = all_[size_t(i)];
  MOEC_CHECK(e.spec.dtype == spec.dtype && e.spec.dims == spec.dims, "{}",
             spec.name);
  return e.data.bytes();
}

void State::add_view(const TensorSpec& spec, std::span<const std::byte> memory,
                     std::shared_ptr<const void> owner) {
  MOEC_CHECK(!has(spec.name) && int64_t(memory.size()) == spec.bytes, "{}",
             spec.name);
  all_.push_back({spec, Buffer(memory, std::move(owner))});
}

int State::find(std::string_view name) const {
  for (size_t i = 0; i < all_.size(); ++i)
    if (all_[i].spec.name == name) return int(i);
  return -1;
}

std::span<float> State::f32(std::string_view name) {
  int i = find(name);
  MOEC_CHECK(i >= 0 && all_[size_t(i)].spec.dtype == DType::F32, "{}", name);
  return all_[size_t(i)].data.as<float>();
}

struct Function::Impl {
  std::unique_ptr<CompiledFunction> compiled;
  std::vector<Buffer> own_in, own_out;
  std::vector<std::span<std::byte>> in, out;

  // A donated input and its output are the same memory.
  void share() {
    auto& donated = compiled->donated();
    for (size_t i = 0; i < donated.size(); ++i)
      if (donated[i] >= 0) {
        out[size_t(donated[i])] = in[i];
        own_out[size_t(donated[i])] = {};
      }
  }
};

Function::Function(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Function::Function(Function&&) noexcept = default;
Function& Function::operator=(Function&&) noexcept = default;
Function::~Function() = default;

void Function::bind(State& state) {
  auto& f = *impl_;
  for (size_t i = 0; i < f.in.size(); ++i)
    if (auto& spec = inputs()[i]; state.has(spec.name)) {
      f.in[i] = state.add(spec);
      f.own_in[i] = {};
    }
  for (size_t o = 0; o < f.out.size(); ++o)
    if (auto& spec = outputs()[o]; state.has(spec.name)) {
      f.out[o] = state.add(spec);
      f.own_out[o] = {};
    }
  f.share();
}

void Function::run() { impl_->compiled->run(impl_->in, impl_->out); }

std::span<std::byte> Function::find(std::string_view name, bool input) {
  auto& specs = input ? inputs() : outputs();
  for (size_t i = 0; i < specs.size(); ++i)
    if (specs[i].name == name) return input ? impl_->in[i] : impl_->out[i];
  MOEC_CHECK(false, "no {} {}", input ? "input" : "output", name);
  return {};
}

const std::vector<TensorSpec>& Function::inputs() const {
  return impl_->compiled->inputs();
}
const std::vector<TensorSpec>& Function::outputs() const {
  return impl_->compiled->outputs();
}
const CompiledFunction& Function::compiled() const { return *impl_->compiled; }

int64_t Function::planned_bytes() const {
  auto& i = impl_->compiled->info();
  return i.arena_bytes + i.scratch_bytes + i.constant_bytes;
}

void Function::set_trace(Trace* trace) { impl_->compiled->set_trace(trace); }
void Function::set_watch(Watch watch) {
  impl_->compiled->set_watch(std::move(watch));
}

struct Engine::Impl {
  EngineOptions options;
  PipelineOptions pipeline;
  std::unique_ptr<Backend> backend;
};

Engine::Engine(const EngineOptions& o)
    : impl_(
          new Impl{o, pipeline_options(o), make_backend(o.device, o.threads)}) {
  impl_->pipeline.has_lowering = [impl = impl_.get()](const Node& n) {
    return impl->backend->supports(n);
  };
}
Engine::~Engine() = default;
const EngineOptions& Engine::options() const { return impl_->options; }
const PipelineOptions& Engine::pipeline() const { return impl_->pipeline; }
int Engine::threads() const { return impl_->backend->threads(); }

double Engine::measure_peak() {
  if (impl_->options.device != "cpu") return 0;
  KernelLibrary library;
  bool bf16 = impl_->pipeline.compute_dtype == DType::BF16;
  return threads() * measure_flops(library, bf16);
}

double Engine::measure_bandwidth(int64_t bytes) {
  if (impl_->options.device != "cpu") return 0;
  KernelLibrary library;
  ThreadPool pool(threads());
  Buffer data{bytes};
  return measure_read(library, pool, data.bytes());
}

Function Engine::compile(std::unique_ptr<Graph> graph) {
  auto& o = impl_->options;
  CompileOptions options;
  options.pipeline = impl_->pipeline;
  options.debug = debug_level();
  options.hooks.from_pass = o.from_pass;
  options.hooks.to_pass = o.to_pass;
  if (!o.dump_to.empty()) options.hooks.dump = write_dumps(o.dump_to);
  auto f = std::make_unique<Function::Impl>();
  f->compiled = moec::compile(*graph, *impl_->backend, options);
  for (auto& s : f->compiled->inputs())
    f->in.push_back(f->own_in.emplace_back(s.bytes).bytes());
  for (auto& s : f->compiled->outputs())
    f->out.push_back(f->own_out.emplace_back(s.bytes).bytes());
  f->share();
  return Function(std::move(f));
}

}  // namespace moec::moe
