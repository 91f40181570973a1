// moec opt: passes over a text file.
#include <CLI/CLI.hpp>

#include "driver/commands.h"
#include "ir/text.h"
#include "passes/pass_manager.h"
#include "support/debug.h"
#include "support/error.h"
#include "support/file.h"

namespace moec {
namespace {

struct Options {
  std::string file, passes;
  bool list = false, has_passes = false;
};

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> names;
  for (size_t at = 0; at < list.size();) {
    size_t end = std::min(list.find(',', at), list.size());
    if (end > at) names.push_back(list.substr(at, end - at));
    at = end + 1;
  }
  return names;
}

void run(const Options& o) {
  if (o.list) {
    for (auto& p : all_passes()) {
      fmt::print("{}\n    {}\n", p.name, p.summary);
      if (!p.needs.empty()) fmt::print("    requires: {}\n", p.needs);
      if (!p.establishes.empty())
        fmt::print("    establishes: {}\n", p.establishes);
    }
    return;
  }
  if (o.file.empty()) usage_error("opt: give a FILE.ir, or --list");
  if (!o.has_passes)
    usage_error("opt: give --passes=a,b (--passes= prints canonical text)");
  Module module = parse_module(read_file(o.file), o.file);
  PassContext context;
  context.debug = debug_level();
  for (auto& f : module.functions) run_passes(*f, split(o.passes), context);
  fmt::print("{}", print(module));
}

}  // namespace

void add_opt_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("opt", "Run passes over IR text");
  c->add_option("file", o->file, "FILE.ir");
  auto* passes = c->add_option("--passes", o->passes, "Passes, by name: a,b");
  passes->expected(0, 1);
  c->add_flag("--list", o->list, "Explain every pass");
  c->callback([o, passes] {
    o->has_passes = passes->count() > 0;
    run(*o);
  });
}

}  // namespace moec
