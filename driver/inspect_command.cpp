// moec inspect: parameters, arithmetic and memory of a model.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "driver/commands.h"
#include "driver/common.h"

#include "models/moe/data.h"
#include "models/moe/flops.h"
#include "models/moe/hf_names.h"
#include "models/moe/model_io.h"
#include "models/moe/router_report.h"
#include "models/moe/transformer.h"
#include "runtime/safetensors.h"
#include "support/progress.h"

namespace moec {
namespace {

struct Options : RunFlags {
  std::string source, text;
};

// A token as text, or its number.
std::string token_text(const std::optional<Tokenizer>& t, int32_t id) {
  if (!t || id >= t->vocab_size()) return std::to_string(id);
  return std::string(t->token_bytes(uint32_t(id)));
}

void report_routes(const Options& o, const moe::OpenedModel& opened,
                   const moe::Transformer& model, nlohmann::ordered_json& j) {
  moe::State state;
  moe::load_parameters(state, model.parameters(), opened);
  moe::Engine engine(engine_options(o, opened.config));
  auto tokens = moe::load_tokens(o.text, opened.config, opened.tokenizer);
  j["routing"] = nlohmann::ordered_json::array();
  for (auto& layer : moe::report_routing(engine, model, state, tokens)) {
    nlohmann::ordered_json l = {{"entropy", layer.entropy},
                                {"dead", layer.dead}};
    for (auto& e : layer.experts) {
      nlohmann::ordered_json x = {{"choices", e.choices}, {"share", e.share}};
      for (int32_t id : e.tokens)
        x["tokens"].push_back(token_text(opened.tokenizer, id));
      l["experts"].push_back(x);
    }
    j["routing"].push_back(l);
  }
}

void print_routes(const nlohmann::ordered_json& layers) {
  using nlohmann::json;
  for (size_t l = 0; l < layers.size(); ++l) {
    fmt::print("\nMoE layer {}: entropy {:.3f}, {} dead\n", l,
               double(layers[l]["entropy"]), int(layers[l]["dead"]));
    for (size_t e = 0; e < layers[l]["experts"].size(); ++e) {
      auto& x = layers[l]["experts"][e];
      std::string tokens;
      if (x.contains("tokens"))
        tokens =
            x["tokens"].dump(-1, ' ', false, json::error_handler_t::replace);
      fmt::print("  expert {:3} {:6.1f} %  {}\n", e, 100 * double(x["share"]),
                 tokens);
    }
  }
}

void run(const Options& o) {
  auto opened = moe::open_model(o.source, o.set);
  auto& c = opened.config;
  moe::Transformer model(c);
  auto& params = model.parameters();
  double flops = moe::train_flops_per_token(c);
  nlohmann::ordered_json routing;
  if (!o.text.empty()) report_routes(o, opened, model, routing);
  if (o.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (auto& p : params.all()) {
      auto hf = moe::hf_name(p.name);
      nlohmann::ordered_json j = {
          {"name", p.name},
          {"shape", std::vector<i64>(p.dims.begin(), p.dims.end())}};
      j["hf_name"] =
          hf.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(hf);
      list.push_back(j);
    }
    nlohmann::ordered_json j = {
        {"parameters", params.count()},
        {"active_parameters", moe::active_parameters(c, params)},
        {"train_flops_per_token", flops},
        {"state_bytes", params.count() * 12},
        {"params", list}};
    if (!routing.is_null()) j.update(routing);
    fmt::print("{}\n", j.dump(-1, ' ', false,
                              nlohmann::json::error_handler_t::replace));
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
  if (!routing.is_null()) print_routes(routing["routing"]);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("inspect", "Parameters and costs of a model");
  c->add_option("source", o->source, "Config or checkpoint")->required();
  c->add_option("--text", o->text,
                "Report which experts serve the tokens of this file");
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
