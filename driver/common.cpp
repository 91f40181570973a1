#include "driver/common.h"

#include <CLI/CLI.hpp>
#include <charconv>

#include "models/moe/trainer.h"
#include "support/error.h"

namespace moec {

void add_config_flags(CLI::App& command, ConfigFlags& flags) {
  command
      .add_option("--set", flags.set,
                  "Override a config key: --set train.lr=1e-3 (repeatable)")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
}

void add_run_flags(CLI::App& command, RunFlags& flags) {
  add_config_flags(command, flags);
  command
      .add_option("--threads", flags.threads,
                  "Threads; 0: the cores that are available")
      ->check(CLI::Range(0, 4096));
  command.add_option("--device", flags.device,
                     "cpu, ref (interpreter) or ref64 (in double)");
  command.add_option("--fuse", flags.fuse,
                     "Fusions: on, off or a list such as attention,moe");
  command.add_option("--moe", flags.moe,
                     "How experts run: fused, grouped or dense");
  command.add_option("--dump-to", flags.dump_to,
                     "Write DIR/FUNCTION/NN_pass.ir after every pass");
  command.add_option("--from-pass", flags.from_pass,
                     "Start the pipeline at this pass (name, or NN of a dump)");
  command.add_option("--to-pass", flags.to_pass,
                     "End the pipeline after this pass");
  command.add_flag("--json", flags.json,
                   "One JSON object as the last line of stdout");
}

CLI::Option* add_data_flag(CLI::App& command, std::vector<std::string>& files) {
  return command
      .add_option("--data", files,
                  "Text, *.jsonl, or token ids (*.bin, *.npy); may be a "
                  "pattern such as 'part-*.jsonl' (repeatable)")
      ->allow_extra_args(false)
      ->type_name("FILE");
}

moe::EngineOptions engine_options(const RunFlags& flags,
                                  const moe::Config& config) {
  moe::EngineOptions o = moe::engine_options(config);
  o.device = flags.device;
  o.threads = flags.threads;
  if (!flags.fuse.empty()) o.fuse = flags.fuse;
  if (!flags.moe.empty()) o.moe = flags.moe;
  o.dump_to = flags.dump_to;
  o.from_pass = flags.from_pass;
  o.to_pass = flags.to_pass;
  return o;
}

moe::EngineOptions engine_options(const RunFlags& flags) {
  return engine_options(
      flags, moe::parse_config(moe::default_config(), "default", flags.set));
}

std::vector<int32_t> parse_ids(const std::string& text, const char* flag) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    int32_t id = 0;
    auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || (next < end && *next != ','))
      usage_error("{} {}: expected numbers with commas between", flag, text);
    ids.push_back(id);
    at = next < end ? next + 1 : next;
  }
  if (ids.empty()) usage_error("{}: no token ids", flag);
  return ids;
}

}  // namespace moec
