#include "codegen/compile.h"

#include <fmt/format.h>

#include <chrono>

#include "passes/dump.h"
#include "support/cpu.h"
#include "support/error.h"

namespace moec {
namespace {

TensorSpec spec_of(std::string name, const Type& t) {
  return {std::move(name), t.dtype, {t.dims.begin(), t.dims.end()}, t.bytes()};
}

}  // namespace

std::vector<TensorSpec> input_specs(const Graph& g) {
  std::vector<TensorSpec> specs;
  for (size_t i = 0; i < g.args().size(); ++i)
    specs.push_back(spec_of(g.arg_name(int(i)), g.args()[i]->type()));
  return specs;
}

std::vector<TensorSpec> output_specs(const Graph& g) {
  std::vector<TensorSpec> specs;
  auto outputs = g.outputs();
  for (size_t i = 0; i < outputs.size(); ++i)
    specs.push_back(spec_of(
        g.output_names.empty() ? fmt::format("out{}", i) : g.output_names[i],
        outputs[i].type()));
  return specs;
}

std::unique_ptr<Backend> make_backend(std::string_view device, int threads) {
  if (device == "cpu")
    return make_cpu_backend(threads ? threads : available_cores());
  if (device == "ref" || device == "ref64")
    return make_reference_backend(device == "ref64");
  usage_error("device: `{}` is none of cpu, ref, ref64", device);
}

std::unique_ptr<CompiledFunction> compile(const Graph& g, Backend& backend,
                                          const CompileOptions& options) {
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  PassContext context;
  context.options = options.pipeline;
  context.options.has_lowering = [&](const Node& n) {
    return backend.supports(n);
  };
  context.debug = options.debug;
  auto graph = g.clone();
  auto stats = run_pipeline(*graph, context, options.hooks);
  double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::unique_ptr<CompiledFunction> f;
  try {
    f = backend.lower(std::move(graph));
  } catch (const InternalError& e) {
    auto again = g.clone();
    RunOptions cuts;
    cuts.from_pass = options.hooks.from_pass;
    cuts.to_pass = options.hooks.to_pass;
    run_pipeline(*again, context, cuts);
    throw_with_reproducer(e, *again, context.options,
                          "--from-pass schedule --stage asm");
  }
  f->info_.passes_s = seconds;
  for (const PassStats& s : stats)
    f->info_.passes.push_back({std::string(s.name), s.ms, s.changed});
  return f;
}

}  // namespace moec
