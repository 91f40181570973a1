#include "models/moe/engine.h"

#include <cstring>

#include "ir/graph.h"
#include "ir/interpreter.h"
#include "support/cpu.h"
#include "support/error.h"

namespace moec::moe {

EngineOptions engine_options(const Config& c) {
  EngineOptions o;
  o.fuse = c.compile.fuse;
  o.moe = c.compile.moe;
  o.remat = c.compile.remat;
  o.dtype = c.train.dtype;
  return o;
}

std::span<std::byte> State::add(const TensorSpec& spec) {
  int i = find(spec.name);
  if (i < 0) {
    i = int(all_.size());
    all_.push_back({spec, Buffer(std::max<int64_t>(spec.bytes, 1))});
  }
  auto& e = all_[size_t(i)];
  MOEC_CHECK(e.spec.dtype == spec.dtype && e.spec.dims == spec.dims, "{}",
             spec.name);
  return e.data.bytes().first(size_t(e.spec.bytes));
}

int State::find(std::string_view name) const {
  for (size_t i = 0; i < all_.size(); ++i)
    if (all_[i].spec.name == name) return int(i);
  return -1;
}

std::span<float> State::f32(std::string_view name) {
  int i = find(name);
  MOEC_CHECK(i >= 0 && all_[size_t(i)].spec.dtype == DType::F32, "{}", name);
  auto& e = all_[size_t(i)];
  return {reinterpret_cast<float*>(e.data.data()),
          size_t(e.spec.bytes) / sizeof(float)};
}

struct Function::Impl {
  std::unique_ptr<Graph> graph;
  Precision precision = Precision::Typed;
  std::vector<TensorSpec> in_specs, out_specs;
  std::vector<Buffer> own;
  std::vector<std::span<std::byte>> in, out;
};

namespace {

TensorSpec spec_of(const std::string& name, const Type& t) {
  return {name, t.dtype, {t.dims.begin(), t.dims.end()}, t.bytes()};
}

template <class T>
void widen(std::span<const std::byte> b, std::vector<double>& v) {
  for (size_t i = 0; i < v.size(); ++i) {
    T x;
    std::memcpy(&x, b.data() + i * sizeof(T), sizeof(T));
    v[i] = double(x);
  }
}
template <class T>
void narrow(const std::vector<double>& v, std::span<std::byte> b) {
  for (size_t i = 0; i < v.size(); ++i) {
    T x = T(v[i]);
    std::memcpy(b.data() + i * sizeof(T), &x, sizeof(T));
  }
}

}  // namespace

Function::Function(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Function::Function(Function&&) noexcept = default;
Function& Function::operator=(Function&&) noexcept = default;
Function::~Function() = default;

void Function::bind(State& state) {
  auto& f = *impl_;
  for (size_t i = 0; i < f.in_specs.size(); ++i) {
    int at = state.find(f.in_specs[i].name);
    if (at >= 0) f.in[i] = state.add(f.in_specs[i]);
  }
  for (size_t o = 0; o < f.out_specs.size(); ++o)
    for (size_t i = 0; i < f.in_specs.size(); ++i)
      if (f.in_specs[i].name == f.out_specs[o].name) f.out[o] = f.in[i];
}

void Function::run() {
  auto& f = *impl_;
  std::vector<Tensor> args;
  for (size_t i = 0; i < f.in.size(); ++i) {
    auto t = Tensor::zeros(f.graph->args()[i]->type());
    switch (t.type.dtype) {
      case DType::F32: widen<float>(f.in[i], t.data); break;
      case DType::I32: widen<int32_t>(f.in[i], t.data); break;
      case DType::U32: widen<uint32_t>(f.in[i], t.data); break;
      default: MOEC_CHECK(false);
    }
    args.push_back(std::move(t));
  }
  auto out = interpret(*f.graph, args, f.precision);
  for (size_t i = 0; i < out.size(); ++i) switch (out[i].type.dtype) {
      case DType::F32: narrow<float>(out[i].data, f.out[i]); break;
      case DType::I32: narrow<int32_t>(out[i].data, f.out[i]); break;
      default: MOEC_CHECK(false);
    }
}

std::span<std::byte> Function::find(std::string_view name, bool input) {
  auto& specs = input ? impl_->in_specs : impl_->out_specs;
  for (size_t i = 0; i < specs.size(); ++i)
    if (specs[i].name == name) return input ? impl_->in[i] : impl_->out[i];
  MOEC_CHECK(false, "no {} {}", input ? "input" : "output", name);
  return {};
}
const std::vector<TensorSpec>& Function::inputs() const {
  return impl_->in_specs;
}
const std::vector<TensorSpec>& Function::outputs() const {
  return impl_->out_specs;
}
bool Function::has_output(std::string_view name) const {
  for (auto& s : impl_->out_specs)
    if (s.name == name) return true;
  return false;
}
int64_t Function::planned_bytes() const { return 0; }
double Function::flops() const { return 0; }
void Function::set_trace(Trace*) {}

struct Engine::Impl {
  EngineOptions options;
};
Engine::Engine(const EngineOptions& o) : impl_(new Impl{o}) {}
Engine::~Engine() = default;
const EngineOptions& Engine::options() const { return impl_->options; }
int Engine::threads() const {
  return impl_->options.threads ? impl_->options.threads : available_cores();
}
double Engine::measure_peak() { return 0; }

Function Engine::compile(std::unique_ptr<Graph> graph) {
  auto f = std::make_unique<Function::Impl>();
  f->precision =
      impl_->options.device == "ref64" ? Precision::F64 : Precision::Typed;
  for (int i = 0; i < int(graph->args().size()); ++i)
    f->in_specs.push_back(
        spec_of(graph->arg_name(i), graph->args()[size_t(i)]->type()));
  auto outs = graph->outputs();
  for (size_t i = 0; i < outs.size(); ++i)
    f->out_specs.push_back(spec_of(graph->output_names[i], outs[i].type()));
  for (auto& s : f->in_specs) {
    f->own.emplace_back(std::max<int64_t>(s.bytes, 1));
    f->in.push_back(f->own.back().bytes());
  }
  for (auto& s : f->out_specs) {
    f->own.emplace_back(std::max<int64_t>(s.bytes, 1));
    f->out.push_back(f->own.back().bytes());
  }
  f->graph = std::move(graph);
  return Function(std::move(f));
}

}  // namespace moec::moe
