// moec dump: the IR of a model's functions, or of a file, at every stage.
#include <CLI/CLI.hpp>

#include "codegen/backend.h"
#include "driver/commands.h"
#include "driver/common.h"
#include "ir/text.h"
#include "models/moe/functions.h"
#include "models/moe/model_io.h"
#include "passes/pass_manager.h"
#include "support/debug.h"
#include "support/error.h"
#include "support/file.h"

namespace moec {
namespace {

struct Options : RunFlags {
  std::string source, fn, stage, to;
};

std::vector<std::unique_ptr<Graph>> functions(const Options& o,
                                              moe::EngineOptions& engine) {
  std::vector<std::unique_ptr<Graph>> out;
  if (o.source.ends_with(".ir")) {
    Module m = parse_module(read_file(o.source), o.source);
    if (o.fn.empty()) return std::move(m.functions);
    for (auto& f : m.functions)
      if (f->name() == o.fn) out.push_back(std::move(f));
    if (out.empty()) usage_error("{}: there is no function {}", o.source, o.fn);
    engine = engine_options(o, moe::Config());
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

void run(const Options& o) {
  moe::EngineOptions engine;
  auto graphs = functions(o, engine);
  std::string stage = o.stage.empty() ? "input" : o.stage;
  if (stage == "llvm" || stage == "asm") {
    moe::Engine device(engine);
    for (auto& g : graphs)
      fmt::print("{}", device.compile(std::move(g)).compiled().code(stage));
    return;
  }
  if (!is_stage(stage)) {
    std::string known;
    for (int i = 0; i < kNumStages; ++i)
      known += fmt::format("{}, ", stage_name(Stage(i)));
    usage_error("--stage {}: stages are {}llvm and asm", stage, known);
  }
  for (size_t i = 0; i < graphs.size(); ++i) {
    auto& g = graphs[i];
    auto name = g->name();
    bool to_stdout = o.to.empty();
    if (to_stdout && stage == "input") {
      fmt::print("{}{}", i ? "\n" : "", print(*g));
      continue;
    }
    PassContext context;
    context.options = moe::pipeline_options(engine);
    context.debug = debug_level();
    RunOptions run_options;
    if (to_stdout)
      run_options.stage = [&](Stage s, const Graph& at) {
        if (stage_name(s) == stage)
          fmt::print("{}{}", i ? "\n" : "", print(at));
      };
    else
      run_options.dump = [&](int index, std::string_view pass,
                             const Graph& at) {
        auto folder = std::filesystem::path(o.to) / name;
        make_folders(folder);
        write_file_atomic(folder / fmt::format("{:02}_{}.ir", index, pass),
                          print(at));
      };
    run_pipeline(*g, context, run_options);
  }
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
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
