// moec inspect: parameters, arithmetic and memory of a model.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "driver/commands.h"
#include "driver/common.h"
#include "models/moe/flops.h"
#include "models/moe/hf_names.h"
#include "models/moe/model_io.h"
#include "models/moe/transformer.h"
#include "runtime/safetensors.h"
#include "support/progress.h"

namespace moec {
namespace {

struct Options : ConfigFlags {
  std::string source;
  bool json = false;
};

void run(const Options& o) {
  auto opened = moe::open_model(o.source, o.set);
  auto& c = opened.config;
  moe::Transformer model(c);
  auto& params = model.parameters();
  double flops = moe::train_flops_per_token(c);
  if (o.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (auto& p : params.all()) {
      auto hf = moe::hf_name(p.name);
      nlohmann::ordered_json j = {
          {"name", p.name},
          {"shape", std::vector<i64>(p.dims.begin(), p.dims.end())}};
      j["hf_name"] = hf.empty() ? nlohmann::ordered_json() : hf;
      list.push_back(j);
    }
    nlohmann::ordered_json j = {
        {"parameters", params.count()},
        {"active_parameters", moe::active_parameters(c, params)},
        {"train_flops_per_token", flops},
        {"state_bytes", params.count() * 12},
        {"params", list}};
    fmt::print("{}\n", j.dump());
    return;
  }
  for (auto& p : params.all())
    fmt::print("{:48} {:20} {:>12}\n", p.name,
               dims_text(std::vector<i64>(p.dims.begin(), p.dims.end())),
               Type{DType::F32, p.dims}.numel());
  fmt::print(
      "\nparameters            {}\nactive for a token    {}\n"
      "training step         {:.2f} MFLOP a token\n"
      "weights and AdamW     {}\n",
      params.count(), moe::active_parameters(c, params), flops / 1e6,
      format_bytes(double(params.count()) * 12));
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("inspect", "Parameters and costs of a model");
  c->add_option("source", o->source, "Config or checkpoint")->required();
  c->add_flag("--json", o->json, "One JSON object as the last line of stdout");
  add_config_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
