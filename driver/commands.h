// The subcommands of `moec`: each adds itself to the program. Errors leave as
// exceptions; main.cpp turns them into messages and exit codes.
#pragma once

namespace CLI {
class App;
}

namespace moec {

void add_train_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_run_command(CLI::App& app);
void add_dump_command(CLI::App& app);
void add_opt_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_bench_fuse(CLI::App& bench);  // and layer, dispatch
void add_inspect_command(CLI::App& app);
void add_hf_commands(CLI::App& app);  // import, export
void add_config_command(CLI::App& app);
void add_doctor_command(CLI::App& app);

}  // namespace moec
