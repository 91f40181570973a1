// moec bench fuse | layer | dispatch: a training step, or one expert layer,
// fused and unfused side by side; what a launch costs.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "driver/commands.h"
#include "driver/common.h"
#include "models/moe/benchmark.h"
#include "models/moe/fuse_benchmark.h"
#include "models/moe/model_io.h"

namespace moec {
namespace {

using nlohmann::ordered_json;

struct FuseFlags : RunFlags {
  std::string config, dtype;
  moe::FuseOptions fuse;
  bool no_dense = false;
  i64 kernels = 12;
};

moe::Config open_config(const FuseFlags& o) {
  auto set = o.set;
  if (!o.dtype.empty()) set.push_back("train.dtype=" + o.dtype);
  return moe::open_model(o.config, set).config;
}

std::string config_name(const FuseFlags& o) {
  return std::filesystem::path(o.config).stem().string();
}

double per_second(double amount, double seconds) {
  return seconds > 0 ? amount / seconds / 1e9 : 0;
}

ordered_json kernels_json(const moe::FuseBenchmark& b) {
  auto rows = ordered_json::array();
  for (auto& form : b.forms)
    for (auto& k : form.kernels) {
      double gflops = per_second(k.flops, k.seconds);
      rows.push_back({{"form", form.name},
                      {"kernel", k.kernel},
                      {"calls", k.calls},
                      {"ms", 1e3 * k.seconds},
                      {"gflops", gflops},
                      {"peak_fraction",
                       b.peak_flops > 0 ? 1e9 * gflops / b.peak_flops : 0},
                      {"mib", k.bytes / (1 << 20)},
                      {"gb_per_s", per_second(k.bytes, k.seconds)}});
    }
  return rows;
}

ordered_json to_json(const FuseFlags& o, const std::string& dtype,
                     const moe::FuseBenchmark& b) {
  ordered_json j = {{"config", config_name(o)},
                    {"dtype", dtype},
                    {"threads", b.threads},
                    {"peak_gflops", b.peak_flops / 1e9}};
  for (auto name : {"fused", "grouped", "dense"}) {
    auto* f = b.find(name);
    std::string prefix = name;
    j[prefix + "_step_ms"] = f ? ordered_json(f->step_ms) : ordered_json();
    j[prefix + "_peak_mib"] = f ? ordered_json(f->peak_mib) : ordered_json();
  }
  if (o.fuse.gradients) {
    j["loss_rel_diff"] = b.grouped.loss;
    j["grad_rel_diff"] = b.grouped.grad;
    j["grad_of"] = b.grouped.grad_of;
    if (o.fuse.dense) {
      j["dense_loss_rel_diff"] = b.dense.loss;
      j["dense_grad_rel_diff"] = b.dense.grad;
    }
  }
  if (o.fuse.run.points > 0) {
    j["run_loss_rel_diff"] = b.run.loss;
    j["run_grad_rel_diff"] = b.run.grad;
    j["run_grad_of"] = b.run.grad_of;
    j["run_moved_tokens"] = b.run.moved_tokens;
    j["run_settled_grad_rel_diff"] = b.run.settled_grad;
    j["free_loss_rel_diff"] = b.run.free_loss;
    j["free_alike_steps"] = b.run.free_alike;
    j["free_control_rel_diff"] = b.run.control_loss;
    j["free_control_alike_steps"] = b.run.control_alike;
  }
  auto forms = ordered_json::array();
  for (auto& f : b.forms)
    forms.push_back({{"form", f.name},
                     {"fuse", f.fuse},
                     {"moe", f.moe},
                     {"compile_s", f.compile_s},
                     {"step_ms", f.step_ms},
                     {"cpu_ms", f.cpu_ms},
                     {"peak_mib", f.peak_mib},
                     {"gflops", f.gflops},
                     {"peak_fraction", f.peak_fraction},
                     {"launches", f.launches}});
  j["forms"] = forms;
  j["kernels"] = kernels_json(b);
  return j;
}

void print_forms(const moe::FuseBenchmark& b) {
  const auto& fused = b.forms[0];
  fmt::print("{:<20} {:>9} {:>9} {:>8} {:>7} {:>9} {:>8} {:>8} {:>9}\n", "step",
             "ms", "CPU ms", "GFLOP/s", "peak", "MiB", "time", "memory",
             "launches");
  for (auto& f : b.forms)
    fmt::print(
        "{:<20} {:>9.2f} {:>9.2f} {:>8.1f} {:>6.1f}% {:>9.1f} {:>7.2f}x "
        "{:>7.2f}x {:>9}\n",
        f.name, f.step_ms, f.cpu_ms, f.gflops, 100 * f.peak_fraction,
        f.peak_mib, f.step_ms / fused.step_ms, f.peak_mib / fused.peak_mib,
        f.launches);
}

void print_kernels(const moe::StepForm& f, double peak, i64 most) {
  double total = 0;
  for (auto& k : f.kernels) total += k.seconds;
  fmt::print("\n{:<44} {:>5} {:>9} {:>6} {:>8} {:>7} {:>8} {:>7}\n",
             "kernels of " + f.name, "calls", "ms", "time", "GFLOP/s", "peak",
             "MiB", "GB/s");
  i64 shown = 0;
  for (auto& k : f.kernels) {
    if (shown++ == most) break;
    double gflops = per_second(k.flops, k.seconds);
    fmt::print(
        "{:<44.44} {:>5} {:>9.3f} {:>5.1f}% {:>8.1f} {:>6.1f}% {:>8.1f} "
        "{:>7.1f}\n",
        k.kernel, k.calls, 1e3 * k.seconds, 100 * k.seconds / total, gflops,
        peak > 0 ? 1e11 * gflops / peak : 0, k.bytes / (1 << 20),
        per_second(k.bytes, k.seconds));
  }
  if (shown > most)
    fmt::print("and {} more\n", f.kernels.size() - size_t(most));
}

void run_fuse(FuseFlags& o) {
  o.fuse.dense = !o.no_dense;
  o.fuse.run.control = true;
  auto config = open_config(o);
  auto b = moe::bench_fuse(config, engine_options(o, config), o.fuse);
  if (o.json) {
    fmt::print("{}\n", to_json(o, config.train.dtype, b).dump());
    return;
  }
  if (!b.forms.empty()) {
    fmt::print(
        "{}, {} thread(s), {}: a training step, forms in turn on the same "
        "weights and batch;\nmemory is that of temporaries, time and memory "
        "beside the fused step's\n\n",
        config_name(o), b.threads, config.train.dtype);
    print_forms(b);
  }
  if (o.fuse.gradients) {
    fmt::print(
        "\nfused against grouped: loss {:.1e}, gradients up to {:.1e} ({})\n",
        b.grouped.loss, b.grouped.grad, b.grouped.grad_of);
    if (o.fuse.dense)
      fmt::print(
          "dense against grouped: loss {:.1e}, gradients up to {:.1e} ({})\n",
          b.dense.loss, b.dense.grad, b.dense.grad_of);
  }
  if (o.fuse.run.points > 0)
    fmt::print(
        "at {} points of a run: loss {:.1e}, gradients up to {:.1e} ({})\n",
        o.fuse.run.points, b.run.loss, b.run.grad, b.run.grad_of);
  if (b.run.moved_points > 0)
    fmt::print(
        "{} token(s), their experts nearly tied, have others there at {} of "
        "them;\nat the rest gradients differ by up to {:.1e}\n",
        b.run.moved_tokens, b.run.moved_points, b.run.settled_grad);
  if (o.fuse.run.free_steps > 0)
    fmt::print(
        "each on its own for {} steps: losses {:.1e} apart, within 1e-5 for {} "
        "steps, {:.4f} to {:.4f};\n"
        "fused again from weights an ulp off: {:.1e} apart, within 1e-5 for {} "
        "steps\n",
        o.fuse.run.free_steps, b.run.free_loss, b.run.free_alike,
        b.run.first_loss, b.run.last_loss, b.run.control_loss,
        b.run.control_alike);
  for (auto& f : b.forms)
    if (!f.name.starts_with("no ")) print_kernels(f, b.peak_flops, o.kernels);
}

void run_layer(const FuseFlags& o) {
  auto config = open_config(o);
  auto b = moe::bench_layer(config, engine_options(o, config), o.fuse.steps);
  ordered_json j = {{"config", config_name(o)},
                    {"dtype", config.train.dtype},
                    {"fused_ms", b.fused_ms},
                    {"grouped_ms", b.grouped_ms},
                    {"dense_ms", b.dense_ms},
                    {"fused_peak_fraction", b.fused_peak_fraction},
                    {"dense_peak_fraction", b.dense_peak_fraction},
                    {"tax", b.tax()},
                    {"grouped_tax", b.grouped_ms / b.dense_ms}};
  if (o.json) {
    fmt::print("{}\n", j.dump());
    return;
  }
  fmt::print(
      "one expert layer, forward and backward, against a dense layer of equal "
      "active FLOPs\n");
  for (auto& [key, value] : j.items())
    fmt::print("{:20} {}\n", key, value.dump());
}

void run_dispatch(const RunFlags& o) {
  moe::EngineOptions e;
  e.threads = o.threads;
  auto b = moe::bench_dispatch(e);
  if (o.json) {
    fmt::print("{}\n", ordered_json{{"threads", b.threads},
                                    {"launches", b.launches},
                                    {"us_per_launch", b.us_per_launch}}
                           .dump());
    return;
  }
  fmt::print("{:.3f} us for each of {} launches, {} thread(s)\n",
             b.us_per_launch, b.launches, b.threads);
}

void add_common(CLI::App& c, FuseFlags& o) {
  c.add_option("config", o.config, "Config or checkpoint")->required();
  c.add_option("--dtype", o.dtype, "f32 or bf16 (train.dtype)");
  add_run_flags(c, o);
}

void add_rounds(CLI::App& c, FuseFlags& o, int least) {
  c.add_option("--steps", o.fuse.steps, "Timed rounds, each form once in each")
      ->check(CLI::Range(least, 1000000));
}

}  // namespace

void add_bench_fuse(CLI::App& bench) {
  auto o = std::make_shared<FuseFlags>();
  auto* c = bench.add_subcommand("fuse", "A training step fused and unfused");
  add_common(*c, *o);
  add_rounds(*c, *o, 0);
  c->add_flag("--each", o->fuse.each,
              "Also with each fusion switched off in turn");
  c->add_flag("--no-dense", o->no_dense,
              "Leave out the form with all experts on all tokens");
  c->add_option("--points", o->fuse.run.points,
                "Compare loss and gradients at so many points of a run too")
      ->check(CLI::Range(0, 1000000));
  c->add_option("--every", o->fuse.run.every, "Steps from point to point")
      ->check(CLI::Range(1, 1000000));
  c->add_option("--free", o->fuse.run.free_steps,
                "Then train both so many steps, each on its own weights")
      ->check(CLI::Range(0, 1000000));
  c->add_option("--kernels", o->kernels, "Kernels listed for each form")
      ->check(CLI::Range(1, 1000));
  c->callback([o] { run_fuse(*o); });

  auto l = std::make_shared<FuseFlags>();
  c = bench.add_subcommand(
      "layer", "An expert layer against a dense one of equal active FLOPs");
  add_common(*c, *l);
  add_rounds(*c, *l, 1);
  c->callback([l] { run_layer(*l); });

  auto d = std::make_shared<RunFlags>();
  c = bench.add_subcommand("dispatch", "What one launch of a kernel costs");
  c->add_option("--threads", d->threads, "Threads; 0: the available cores");
  c->add_flag("--json", d->json, "One JSON object as the last line of stdout");
  c->callback([d] { run_dispatch(*d); });
}

}  // namespace moec
