// moec import and moec export: checkpoints of Hugging Face's transformers.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "driver/commands.h"
#include "driver/common.h"
#include "models/moe/hf_checkpoint.h"
#include "support/progress.h"

namespace moec {
namespace {

struct Options {
  std::string from, to;
  int64_t shard_mib = 0;
  bool json = false;
};

void report(const moe::HfReport& r, const Options& o) {
  for (auto& note : r.notes) fmt::print(stderr, "note: {}\n", note);
  if (o.json) {
    nlohmann::ordered_json j = {{"folder", o.to},
                                {"family", r.family},
                                {"tensors", r.tensors},
                                {"bytes", r.bytes},
                                {"files", r.files}};
    fmt::print("{}\n", j.dump(-1, ' ', false,
                              nlohmann::json::error_handler_t::replace));
    return;
  }
  fmt::print("{}: {}, {} tensors, {} in {} file{}\n", o.to, r.family, r.tensors,
             format_bytes(double(r.bytes)), r.files, r.files == 1 ? "" : "s");
}

}  // namespace

void add_hf_commands(CLI::App& app) {
  auto i = std::make_shared<Options>();
  auto* in = app.add_subcommand(
      "import", "Read a Mixtral, Qwen3-MoE or OLMoE checkpoint");
  in->add_option("folder", i->from, "Its folder: config.json and safetensors")
      ->required();
  in->add_option("checkpoint", i->to, "Step folder to write")->required();
  in->add_flag("--json", i->json, "One JSON object as the last line of stdout");
  in->callback([i] { report(moe::import_hf(i->from, i->to), *i); });

  auto o = std::make_shared<Options>();
  auto* out = app.add_subcommand("export",
                                 "Write a checkpoint as one of those families");
  out->add_option("checkpoint", o->from, "Step folder or run folder")
      ->required();
  out->add_option("folder", o->to, "Folder to write")->required();
  out->add_option("--shard-mib", o->shard_mib,
                  "Largest file of tensors (default: about 5 GB)")
      ->check(CLI::PositiveNumber);
  out->add_flag("--json", o->json,
                "One JSON object as the last line of stdout");
  out->callback([o] {
    moe::HfExportOptions options;
    if (o->shard_mib > 0) options.shard_bytes = o->shard_mib << 20;
    report(moe::export_hf(o->from, o->to, options), *o);
  });
}

}  // namespace moec
