// moec doctor: what this machine and this build have.
#include <CLI/CLI.hpp>

#include "codegen/cpu/jit.h"
#include "codegen/cpu/target.h"
#include "driver/commands.h"
#include "support/cpu.h"
#include "support/error.h"
#include "support/progress.h"

namespace moec {
namespace {

void run() {
  fmt::print("moec            " MOEC_VERSION ", {}\n", compiler_versions());
  fmt::print("kernel cache    {}\n", default_cache_dir());
  fmt::print("cores           {}\n", available_cores());
  fmt::print("free memory     {}\n", format_bytes(double(available_memory())));
  const Target& t = host_target();
  fmt::print("processor       {} ({} f32 lanes, {} registers{}{})\n", t.cpu,
             t.lanes, t.registers, t.bf16_dot ? ", bf16 dot product" : "",
             t.amx_bf16 ? ", AMX bf16 tiles" : "");
  for (auto level : {"native-noamx", "x86-64-v4", "x86-64-v3", "x86-64"}) {
    std::string state = "can be forced with MOEC_CPU";
    try {
      make_target(level);
    } catch (const UserError&) {
      state = "not on this machine";
    }
    fmt::print("{:15} {}\n", level, state);
  }
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  auto* c = app.add_subcommand("doctor", "Check machine and build");
  c->callback([] { run(); });
}

}  // namespace moec
