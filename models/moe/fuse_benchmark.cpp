#include "models/moe/fuse_benchmark.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <map>

#include "codegen/backend.h"
#include "models/moe/benchmark.h"
#include "models/moe/flops.h"
#include "models/moe/functions.h"
#include "models/moe/model_io.h"
#include "models/moe/schedule.h"
#include "passes/pipeline.h"

namespace moec::moe {
namespace {

double seconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v.empty() ? 0 : v[v.size() / 2];
}

// One compiled form with what it measured.
struct Runner {
  StepForm form;
  std::unique_ptr<Engine> engine;
  std::optional<Function> step;
  std::vector<double> wall, cpu;
};

EngineOptions form_of(EngineOptions o, std::string fuse, std::string moe) {
  o.fuse = std::move(fuse);
  o.moe = std::move(moe);
  return o;
}

Runner make_runner(std::string name, const EngineOptions& options,
                   const Transformer& model, State& state) {
  Runner r;
  r.form.name = std::move(name);
  r.form.fuse = options.fuse;
  r.form.moe = options.moe;
  r.engine = std::make_unique<Engine>(options);
  double start = seconds(CLOCK_MONOTONIC);
  r.step.emplace(r.engine->compile(train_step_function(model)));
  r.form.compile_s = seconds(CLOCK_MONOTONIC) - start;
  r.step->bind(state);
  auto& config = model.config();
  fill_random_batch(*r.step, config);
  r.step->input<float>("lr")[0] = 0;
  r.step->input<float>("step")[0] = 1;
  std::ranges::copy(step_key(uint64_t(config.train.seed), 0, 0),
                    r.step->input<uint32_t>("key").begin());
  auto& info = r.step->compiled().info();
  double bytes = double(info.arena_bytes + info.constant_bytes) +
                 double(info.scratch_bytes) * double(r.engine->threads());
  r.form.peak_mib = bytes / (1 << 20);
  r.form.launches = info.launches;
  return r;
}

void time_step(Runner& r) {
  double wall = seconds(CLOCK_MONOTONIC);
  double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
  r.step->run();
  r.wall.push_back(seconds(CLOCK_MONOTONIC) - wall);
  r.cpu.push_back(seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu);
}

// Loss and gradients of one form.
struct Gradients {
  double loss = 0;
  std::map<std::string, std::vector<float>> of;  // by parameter
};

Gradients gradients(const EngineOptions& options, const Transformer& model,
                    State& state) {
  auto& t = model.config().train;
  Engine engine(options);
  Function f = engine.compile(grad_function(model, t.batch, t.seq));
  f.bind(state);
  fill_random_batch(f, model.config());
  f.run();
  Gradients g;
  g.loss = f.output<float>("loss")[0];
  for (auto& p : model.parameters().all()) {
    auto values = f.output<float>("grad." + p.name);
    g.of[p.name].assign(values.begin(), values.end());
  }
  return g;
}

FormDifference compare(const Gradients& a, const Gradients& b,
                       const dsl::Parameters& params) {
  auto of = [](const Gradients& g) -> GradientOf {
    return [&g](const std::string& name) -> std::span<const float> {
      return g.of.at(name);
    };
  };
  FormDifference d;
  d.loss = std::abs(a.loss - b.loss) / std::max(std::abs(b.loss), 1e-30);
  auto worst = gradient_difference(params, of(a), of(b));
  d.grad = worst.value;
  d.grad_of = worst.of;
  return d;
}

}  // namespace

const StepForm* FuseBenchmark::find(std::string_view name) const {
  auto it = std::ranges::find(forms, name, &StepForm::name);
  return it == forms.end() ? nullptr : &*it;
}

FuseBenchmark bench_fuse(const Config& config, const EngineOptions& fused,
                         const FuseOptions& options) {
  Transformer model(config);
  State state;
  init_parameters(state, model.parameters(), uint64_t(config.train.seed));
  const EngineOptions grouped = form_of(fused, "off", "grouped");
  const EngineOptions dense = form_of(fused, "off", "dense");

  FuseBenchmark b;
  if (options.gradients) {
    Gradients want = gradients(grouped, model, state);
    b.grouped =
        compare(gradients(fused, model, state), want, model.parameters());
    if (options.dense)
      b.dense =
          compare(gradients(dense, model, state), want, model.parameters());
  }

  if (options.run.points > 0 || options.run.free_steps > 0)
    b.run = check_fusion(config, fused, grouped, options.run);
  if (options.steps == 0) return b;

  add_moments(state, model.parameters());
  std::vector<Runner> runners;
  auto add = [&](std::string name, const EngineOptions& o) {
    runners.push_back(make_runner(std::move(name), o, model, state));
  };
  add("fused", fused);
  add("grouped", grouped);
  if (options.dense) add("dense", dense);
  FusionSet on = FusionSet::parse(fused.fuse);
  for (int i = 0; options.each && i < kNumFusions; ++i)
    if (auto f = Fusion(i); on.has(f))
      add("no " + std::string(fusion_name(f)),
          form_of(fused, on.without(f).to_string(), fused.moe));

  Engine& engine = *runners[0].engine;
  b.threads = engine.threads();
  b.peak_flops = engine.measure_peak();
  for (Runner& r : runners) r.step->run();  // to warm up
  for (i64 round = 0; round < options.steps; ++round) {
    for (Runner& r : runners) time_step(r);
    b.peak_flops = std::max(b.peak_flops, engine.measure_peak());
  }
  double flops = train_flops_per_token(config) *
                 double(config.train.batch * config.train.seq);
  for (Runner& r : runners) {
    Trace trace;
    r.step->set_trace(&trace);
    r.step->run();
    r.step->set_trace(nullptr);
    r.form.kernels = trace.by_kernel();
    double step = median(r.wall);
    r.form.step_ms = 1e3 * step;
    r.form.cpu_ms = 1e3 * median(r.cpu);
    r.form.gflops = flops / step / 1e9;
    if (b.peak_flops > 0) r.form.peak_fraction = flops / step / b.peak_flops;
    b.forms.push_back(std::move(r.form));
  }
  return b;
}

}  // namespace moec::moe
