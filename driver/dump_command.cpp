// moec dump: the IR of a model's functions, or of a file, at every stage.
#include <CLI/CLI.hpp>

#include "codegen/backend.h"
#include "driver/commands.h"
#include "driver/common.h"
#include "ir/text.h"
#include "models/moe/functions.h"
#include "models/moe/model_io.h"
#include "passes/dump.h"
#include "passes/html_report.h"
#include "support/debug.h"
#include "support/error.h"
#include "support/file.h"

namespace moec {
namespace {

struct Options : RunFlags {
  std::string source, fn, stage, to, html;
};

std::vector<std::unique_ptr<Graph>> functions(const Options& o,
                                              moe::EngineOptions& engine) {
  std::vector<std::unique_ptr<Graph>> out;
  if (o.source.ends_with(".ir")) {
    Module m = parse_module(read_file(o.source), o.source);
    engine = engine_options(o);
    if (o.fn.empty()) return std::move(m.functions);
    for (auto& f : m.functions)
      if (f->name() == o.fn) out.push_back(std::move(f));
    if (out.empty()) usage_error("{}: there is no function {}", o.source, o.fn);
    return out;
  }
  auto opened = moe::open_model(o.source, o.set);
  engine = engine_options(o, opened.config);
  moe::Transformer model(opened.config);
  auto& t = opened.config.train;
  auto names = o.fn.empty() ? moe::function_names(model)
                            : std::vector<std::string>{o.fn};
  for (auto& name : names)
    out.push_back(moe::make_function(model, name, t.batch, t.seq));
  return out;
}

bool is_stage(std::string_view name) {
  for (int i = 0; i < kNumStages; ++i)
    if (stage_name(Stage(i)) == name) return true;
  return false;
}

// Without a stage: the input, or where --to-pass ends.
std::string chosen_stage(const Options& o) {
  std::string stage = o.stage;
  if (stage.empty() && o.to_pass.empty()) stage = "input";
  if (stage.empty() || stage == "llvm" || stage == "asm" || is_stage(stage))
    return stage;
  std::string known;
  for (int i = 0; i < kNumStages; ++i)
    known += fmt::format("{}, ", stage_name(Stage(i)));
  usage_error("--stage {}: stages are {}llvm and asm", stage, known);
}

void run(const Options& o) {
  moe::EngineOptions options;
  auto graphs = functions(o, options);
  std::string stage = chosen_stage(o);
  bool files = !o.to.empty() || !o.html.empty();
  if (stage == "input" && !files) {
    for (size_t i = 0; i < graphs.size(); ++i)
      fmt::print("{}{}", i ? "\n" : "", print(*graphs[i]));
    return;
  }
  moe::Engine engine(options);
  if (stage == "llvm" || stage == "asm") {
    for (auto& g : graphs)
      fmt::print("{}", engine.compile(std::move(g)).compiled().code(stage));
    return;
  }
  HtmlReport report;
  bool shown = false;
  auto show = [&](const Graph& g) {
    fmt::print("{}{}", shown ? "\n" : "", print(g));
    shown = true;
  };
  for (auto& g : graphs) {
    PassContext context;
    context.options = engine.pipeline();
    context.debug = debug_level();
    RunOptions run;
    run.from_pass = o.from_pass;
    run.to_pass = o.to_pass;
    if (!files)
      run.stage = [&](Stage s, const Graph& at) {
        if (stage_name(s) == stage) show(at);
      };
    if (!o.to.empty()) run.dump = write_dumps(o.to);
    if (o.html.empty())
      run_pipeline(*g, context, run);
    else
      report.add(*g, context, run);
    if (stage.empty() && !files) show(*g);
  }
  if (!o.html.empty())
    write_file_atomic(
        o.html,
        report.page(std::filesystem::path(o.source).filename().string()));
}

}  // namespace

void add_dump_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("dump", "Print the IR of a model at a stage");
  c->add_option("source", o->source, "Config, checkpoint or FILE.ir")
      ->required();
  c->add_option("--fn", o->fn, "One function; default all");
  c->add_option("--stage", o->stage,
                "input, matched, grad, partitioned, fused, scheduled, llvm "
                "or asm");
  c->add_option("--to", o->to, "Write FN/NN_pass.ir for every pass there");
  c->add_option("--html", o->html, "Write a page to browse every pass");
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
