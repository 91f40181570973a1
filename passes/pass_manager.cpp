#include "passes/pass_manager.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>

#include "ir/op_def.h"
#include "ir/text.h"
#include "ir/verifier.h"
#include "passes/dump.h"
#include "support/error.h"

namespace moec {
namespace {

constexpr PassInfo kPasses[] = {
#define MOEC_PASS(function, name, summary, requires_, establishes) \
  {function, name, summary, requires_, establishes},
#include "passes/passes.def"
#undef MOEC_PASS
};

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t best = std::min(
          {row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = row[j];
      row[j] = best;
    }
  }
  return row.back();
}

const PassInfo& pass_named(std::string_view name) {
  if (const PassInfo* p = find_pass(name)) return *p;
  auto nearest = std::min_element(std::begin(kPasses), std::end(kPasses),
                                  [&](const PassInfo& a, const PassInfo& b) {
                                    return edit_distance(name, a.name) <
                                           edit_distance(name, b.name);
                                  });
  usage_error("`{}` is no pass; did you mean {}? (moec opt --list has all)",
              name, nearest->name);
}

// Runs one pass; the graph is verified after it.
PassStats run_one(Graph& g, const PassInfo& pass, PassContext& ctx) {
  PassStats s{.name = pass.name, .nodes_before = g.size()};
  auto start = std::chrono::steady_clock::now();
  s.changed = pass.run(g, ctx);
  s.ms = std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now() - start)
             .count();
  s.nodes_after = g.size();
  verify(g, pass.name);
  if (ctx.debug >= 1)
    ctx.print(fmt::format("{:<14} {:>8.2f} ms  {:>5} -> {:<5} nodes{}",
                          pass.name, s.ms, s.nodes_before, s.nodes_after,
                          s.changed ? "" : "  (unchanged)"));
  if (ctx.debug >= 2 && s.changed) ctx.print(moec::print(g));
  return s;
}

using Steps = std::vector<PipelineStep>;

PassStats run_step(Graph& g, const PipelineStep& step, PassContext& ctx) {
  PassStats stats = run_one(g, pass_named(step.pass), ctx);
  for (Stage stage : step.ends) check_stage(g, stage, ctx.options);
  return stats;
}

// Passes give the same graph each time, so what stood before the failing one
// need not be kept.
[[noreturn]] void reproduce(const Graph& input, const Steps& steps,
                            size_t begin, size_t failed, PassContext ctx,
                            const InternalError& error) {
  ctx.debug = 0;
  auto g = input.clone();
  for (size_t i = begin; i < failed; ++i) run_step(*g, steps[i], ctx);
  throw_with_reproducer(
      error, *g, ctx.options,
      fmt::format("--from-pass {0} --to-pass {0}", failed + 1));
}

// Steps [begin, end).
std::vector<PassStats> run_steps(Graph& g, const Steps& steps, size_t begin,
                                 size_t end, PassContext& ctx,
                                 const RunOptions& run) {
  std::vector<PassStats> stats;
  verify(g);
  if (run.dump) run.dump(int(begin), stage_name(Stage::Input), g);
  if (run.stage) run.stage(Stage::Input, g);
  auto input = g.clone();
  for (size_t i = begin; i < end; ++i) {
    try {
      stats.push_back(run_step(g, steps[i], ctx));
    } catch (const InternalError& e) {
      reproduce(*input, steps, begin, i, ctx, e);
    }
    if (run.dump) run.dump(int(i) + 1, steps[i].pass, g);
    if (run.stage)
      for (Stage stage : steps[i].ends) run.stage(stage, g);
  }
  return stats;
}

// The step of this number or name, counted from 0; `last`: of several of the
// name the last one.
size_t find_step(const Steps& steps, const std::string& text, bool last) {
  size_t number = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) {
    if (number < 1 || number > steps.size())
      usage_error("pass {}: the pipeline has passes 1 to {}", number,
                  steps.size());
    return number - 1;
  }
  pass_named(text);
  size_t found = steps.size();
  for (size_t i = 0; i < steps.size(); ++i)
    if (steps[i].pass == text && (last || found == steps.size())) found = i;
  if (found == steps.size())
    usage_error("`{}` is not among the passes that these options ask for",
                text);
  return found;
}

}  // namespace

absl::Span<const PassInfo> all_passes() { return kPasses; }

const PassInfo* find_pass(std::string_view name) {
  for (const PassInfo& p : kPasses)
    if (p.name == name) return &p;
  return nullptr;
}

void PassContext::print(std::string_view line) const {
  if (log) return log(line);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fputc('\n', stderr);
}

void PassContext::explain(std::string_view pass, const Node& n,
                          std::string_view why) const {
  if (debug < 3) return;
  print(fmt::format("{}: not applied at {}{}: {}", pass,
                    n.where.scope.empty() ? "" : n.where.scope + " ",
                    moec::print(n), why));
}

std::vector<PassStats> run_passes(Graph& g,
                                  const std::vector<std::string>& names,
                                  PassContext& ctx, const RunOptions& run) {
  Steps steps;
  for (const std::string& name : names)
    steps.push_back({pass_named(name).name});
  return run_steps(g, steps, 0, steps.size(), ctx, run);
}

std::vector<PassStats> run_pipeline(Graph& g, PassContext& ctx,
                                    const RunOptions& run) {
  auto steps = standard_pipeline(ctx.options);
  size_t begin = 0, end = steps.size();
  if (!run.from_pass.empty()) begin = find_step(steps, run.from_pass, false);
  if (!run.to_pass.empty()) end = find_step(steps, run.to_pass, true) + 1;
  if (begin >= end)
    usage_error("--from-pass {} comes after --to-pass {}", run.from_pass,
                run.to_pass);
  return run_steps(g, steps, begin, end, ctx, run);
}

void check_stage(const Graph& g, Stage stage, const PipelineOptions& options) {
  for (Node* n : g) {
    auto fail = [&](std::string_view why) {
      throw InternalError(fmt::format("stage {} of @{}: {}: {}",
                                      stage_name(stage), g.name(), why,
                                      print(*n)));
    };
    if (stage >= Stage::Grad &&
        (n->op() == Op::Grad || n->op() == Op::StopGradient))
      fail("expanded by the pass grad");
    if (stage >= Stage::Fused && options.has_lowering &&
        !has_trait(*n, kImpure) && !options.has_lowering(*n))
      fail("the backend has no lowering");
  }
}

std::string passes_reference() {
  std::string s =
      "# Passes\n\n"
      "Generated from passes/passes.def; `moec opt --list` prints them.\n\n";
  for (const PassInfo& p : kPasses) {
    s += fmt::format("## {}\n\n{}\n\n", p.name, p.summary);
    if (!p.needs.empty()) s += fmt::format("- requires: {}\n", p.needs);
    if (!p.establishes.empty())
      s += fmt::format("- establishes: {}\n", p.establishes);
    s += "\n";
  }
  s += "## The standard pipeline\n\n";
  for (const PipelineStep& step : standard_pipeline({})) {
    s += fmt::format("- {}", step.pass);
    for (Stage stage : step.ends)
      s += fmt::format(" (then stage `{}`)", stage_name(stage));
    s += "\n";
  }
  return s;
}

}  // namespace moec
