// moec: define, dump, train, generate, compare.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "driver/commands.h"
#include "driver/tokenizer_command.h"
#include "support/error.h"

namespace {

int fail(int code, const char* kind, const char* what) {
  std::fflush(stdout);
  std::fprintf(stderr, "%s: %s\n", kind, what);
  return code;
}

int run(int argc, char** argv) {
  CLI::App app{
      "moec: a graph compiler for mixture-of-experts transformers\n"
      "docs/guide.md explains configs and commands; `moec train` alone trains "
      "a small model."};
  app.name("moec");
  app.set_version_flag("--version", "moec " MOEC_VERSION);
  app.require_subcommand(1);
  moec::add_train_command(app);
  moec::add_generate_command(app);
  moec::add_eval_command(app);
  moec::add_run_command(app);
  moec::add_dump_command(app);
  moec::add_opt_command(app);
  moec::add_bench_command(app);
  moec::add_inspect_command(app);
  moec::add_hf_commands(app);
  moec::add_tokenizer_commands(app);
  moec::add_config_command(app);
  moec::add_doctor_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const moec::UsageError& e) {
    return fail(2, "error", e.what());
  } catch (const moec::UserError& e) {
    return fail(1, "error", e.what());
  } catch (const moec::InternalError& e) {
    return fail(1, "internal error (a bug in moec)", e.what());
  } catch (const std::bad_alloc&) {
    return fail(1, "error", "out of memory");
  } catch (const std::exception& e) {
    return fail(1, "error", e.what());
  }
}
