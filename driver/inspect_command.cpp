// moec inspect: parameters, costs and routing of a model.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "driver/commands.h"
#include "driver/common.h"
#include "driver/inspect_html.h"
#include "models/moe/cost_report.h"
#include "models/moe/data.h"
#include "models/moe/hf_names.h"
#include "models/moe/model_io.h"
#include "models/moe/router_report.h"
#include "models/moe/transformer.h"
#include "runtime/safetensors.h"
#include "support/file.h"
#include "support/progress.h"

namespace moec {
namespace {

using Json = nlohmann::ordered_json;

struct Options : RunFlags {
  std::string source, html;
  std::vector<std::string> text;
};

// Tokens of a byte-level vocabulary may end within a character.
std::string dump(const Json& j) {
  return j.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// A token as text that is UTF-8, or its number.
std::string token_text(const std::optional<Tokenizer>& t, int32_t id) {
  if (!t || id >= t->vocab_size() || !t->has(uint32_t(id)))
    return std::to_string(id);
  return Json::parse(dump(std::string(t->token_bytes(uint32_t(id)))));
}

Json cost_json(const moe::CostReport& c) {
  return {{"parameters", c.parameters},
          {"active_parameters", c.active_parameters},
          {"train_flops_per_token", c.flops_per_token},
          {"state_bytes", c.parameter_bytes + c.moment_bytes},
          {"memory",
           {{"parameters", c.parameter_bytes},
            {"moments", c.moment_bytes},
            {"temporaries", c.temporary_bytes},
            {"total", c.parameter_bytes + c.moment_bytes + c.temporary_bytes}}},
          {"roofline",
           {{"peak_flops_per_s", c.peak},
            {"bandwidth_bytes_per_s", c.bandwidth},
            {"step_flops", c.step_flops},
            {"step_bytes", c.step_bytes},
            {"step_compute_ms", 1e3 * c.compute_seconds()},
            {"step_memory_ms", 1e3 * c.memory_seconds()},
            {"decode_bytes_per_token", c.decode_bytes},
            {"decode_tokens_per_s", c.decode_tokens_per_s()}}}};
}

Json params_json(const dsl::Parameters& params,
                 const std::optional<moe::HfCarried>& hf) {
  auto& family =
      hf ? moe::hf_family_of(*hf) : *moe::find_hf_family("qwen3_moe");
  Json list = Json::array();
  for (auto& p : params.all()) {
    auto theirs = moe::hf_name(family, hf && hf->stacked, p.name);
    list.push_back({{"name", p.name},
                    {"shape", std::vector<i64>(p.dims.begin(), p.dims.end())},
                    {"hf_name", theirs.empty() ? Json() : Json(theirs)}});
  }
  return list;
}

void add_routing(Json& j, const moe::RoutingReport& report,
                 const std::optional<Tokenizer>& tokenizer) {
  auto list = [&](const std::vector<moe::TokenChoices>& tokens) {
    Json out = Json::array();
    for (auto& t : tokens)
      out.push_back({{"token", token_text(tokenizer, t.token)},
                     {"choices", t.choices},
                     {"share", t.share}});
    return out;
  };
  j["routing"] = Json::array();
  for (auto& layer : report.layers) {
    Json l = {{"entropy", layer.load.entropy},
              {"dead", layer.load.dead},
              {"experts", Json::array()}};
    for (auto& e : layer.experts)
      l["experts"].push_back({{"choices", e.choices},
                              {"share", e.share},
                              {"frequent", list(e.frequent)},
                              {"typical", list(e.typical)}});
    l["first"] = layer.first;
    j["routing"].push_back(l);
  }
  j["excerpt"] = Json::array();
  for (int32_t id : report.excerpt)
    j["excerpt"].push_back(token_text(tokenizer, id));
}

void print_costs(const moe::CostReport& c) {
  fmt::print(
      "\nparameters            {}\nactive for a token    {}\n"
      "training              {:.2f} MFLOP a token\n"
      "memory of a step      {}: parameters {}, moments {}, temporaries {}\n",
      c.parameters, c.active_parameters, c.flops_per_token / 1e6,
      format_bytes(
          double(c.parameter_bytes + c.moment_bytes + c.temporary_bytes)),
      format_bytes(double(c.parameter_bytes)),
      format_bytes(double(c.moment_bytes)),
      format_bytes(double(c.temporary_bytes)));
  if (c.peak == 0) return;
  fmt::print(
      "peak of this machine  {:.0f} GFLOP/s, {:.1f} GB/s\n"
      "a step is at least    {:.2f} ms of arithmetic ({:.2f} GFLOP), {:.2f} ms "
      "of memory ({} in {} kernels)\n"
      "generation at most    {:.0f} tokens/s ({} of weights a token)\n",
      c.peak / 1e9, c.bandwidth / 1e9, 1e3 * c.compute_seconds(),
      c.step_flops / 1e9, 1e3 * c.memory_seconds(), format_bytes(c.step_bytes),
      c.launches, c.decode_tokens_per_s(), format_bytes(c.decode_bytes));
}

void print_routing(const Json& layers) {
  for (size_t l = 0; l < layers.size(); ++l) {
    auto& experts = layers[l]["experts"];
    fmt::print(
        "\nMoE layer {}: entropy {:.3f} of 1, {} of {} experts dead\n"
        "  expert   share  most often / typically\n",
        l, double(layers[l]["entropy"]), int(layers[l]["dead"]),
        experts.size());
    for (size_t e = 0; e < experts.size(); ++e) {
      auto line = [&](const char* which) {
        std::string s;
        for (auto& t : experts[e][which]) s += " " + dump(t["token"]);
        return s;
      };
      fmt::print("  {:6} {:5.1f} % {}\n                 {}\n", e,
                 100 * double(experts[e]["share"]), line("frequent"),
                 line("typical"));
    }
  }
}

void run(const Options& o) {
  auto opened = moe::open_model(o.source, o.set);
  auto& c = opened.config;
  moe::Transformer model(c);
  moe::Engine engine(engine_options(o, c));
  auto costs = moe::report_costs(engine, model);
  Json j = cost_json(costs);
  j["params"] = params_json(model.parameters(), opened.hf);
  if (!o.text.empty()) {
    moe::State state;
    moe::load_parameters(state, model.parameters(), opened);
    auto tokens = moe::load_tokens(o.text, c, opened.tokenizer);
    add_routing(j, moe::report_routing(engine, model, state, tokens),
                opened.tokenizer);
  }
  if (!o.html.empty()) write_file_atomic(o.html, inspect_html(j, o.source));
  if (o.json) {
    fmt::print("{}\n", dump(j));
    return;
  }
  for (auto& p : model.parameters().all())
    fmt::print("{:48} {:20} {:>12}\n", p.name,
               dims_text(std::vector<i64>(p.dims.begin(), p.dims.end())),
               Type{DType::F32, p.dims}.numel());
  print_costs(costs);
  if (j.contains("routing")) print_routing(j["routing"]);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c =
      app.add_subcommand("inspect", "Parameters, costs and routing of a model");
  c->add_option("source", o->source, "Config or checkpoint")->required();
  c->add_option("--text", o->text,
                "Report which experts serve the tokens of this file "
                "(repeatable)")
      ->allow_extra_args(false);
  c->add_option("--html", o->html, "Write the report as a page to this file");
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
