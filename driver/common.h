// What the subcommands share: flags and output.
#pragma once
#include <string>
#include <vector>

#include "models/moe/engine.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace moec {

struct ConfigFlags {
  std::vector<std::string> set;  // --set key=value
};
void add_config_flags(CLI::App& command, ConfigFlags& flags);

// Of every command that executes.
struct RunFlags : ConfigFlags {
  int threads = 0;
  std::string device = "cpu", fuse, moe;
  std::string dump_to, from_pass, to_pass;
  bool json = false;
};
void add_run_flags(CLI::App& command, RunFlags& flags);
// The config's options, with those flags over them that were given.
moe::EngineOptions engine_options(const RunFlags& flags,
                                  const moe::Config& config);
// For a FILE.ir, which has no config: those that --set gives.
moe::EngineOptions engine_options(const RunFlags& flags);

// --data of text or token ids, repeatable.
CLI::Option* add_data_flag(CLI::App& command, std::vector<std::string>& files);

// "1,2,3"; a UsageError names `flag`.
std::vector<int32_t> parse_ids(const std::string& text, const char* flag);

}  // namespace moec
