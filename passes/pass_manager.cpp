#include "passes/pass_manager.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "ir/op_def.h"
#include "ir/text.h"
#include "ir/verifier.h"
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

std::vector<PassStats> run_steps(Graph& g,
                                 const std::vector<PipelineStep>& steps,
                                 PassContext& ctx, const RunOptions& run) {
  std::vector<PassStats> stats;
  verify(g);
  if (run.dump) run.dump(0, stage_name(Stage::Input), g);
  if (run.stage) run.stage(Stage::Input, g);
  for (const PipelineStep& step : steps) {
    stats.push_back(run_one(g, pass_named(step.pass), ctx));
    if (run.dump) run.dump(int(stats.size()), step.pass, g);
    for (Stage stage : step.ends) {
      check_stage(g, stage, ctx.options);
      if (run.stage) run.stage(stage, g);
    }
  }
  return stats;
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
  std::vector<PipelineStep> steps;
  for (const std::string& name : names)
    steps.push_back({pass_named(name).name});
  return run_steps(g, steps, ctx, run);
}

std::vector<PassStats> run_pipeline(Graph& g, PassContext& ctx,
                                    const RunOptions& run) {
  auto steps = standard_pipeline(ctx.options);
  auto is = [](std::string_view name) {
    return [name](const PipelineStep& s) { return s.pass == name; };
  };
  if (!run.to_pass.empty()) {
    pass_named(run.to_pass);
    auto last = std::find_if(steps.rbegin(), steps.rend(), is(run.to_pass));
    steps.erase(last.base(), steps.end());
  }
  if (!run.from_pass.empty()) {
    pass_named(run.from_pass);
    auto first = std::find_if(steps.begin(), steps.end(), is(run.from_pass));
    steps.erase(steps.begin(), first);
  }
  return run_steps(g, steps, ctx, run);
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
