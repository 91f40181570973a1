// moec eval: the loss of a checkpoint on a file.
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "driver/commands.h"
#include "driver/common.h"
#include "models/moe/data.h"
#include "models/moe/evaluation.h"
#include "models/moe/functions.h"
#include "models/moe/model_io.h"

namespace moec {
namespace {

struct Options : RunFlags {
  std::string checkpoint;
  std::vector<std::string> data;
};

void run(const Options& o) {
  auto opened = moe::open_model(o.checkpoint, o.set);
  auto& config = opened.config;
  moe::Transformer model(config);
  moe::State state;
  moe::load_parameters(state, model.parameters(), opened);
  auto tokens = moe::load_tokens(o.data, config, opened.tokenizer);
  // No longer than the text: a model may be able to read much more.
  i64 seq = std::min(config.train.seq, std::max<i64>(tokens.size() - 1, 1));
  EvalWindows windows(tokens, seq);
  i64 rows = std::min(config.train.batch, windows.windows());
  moe::Engine engine(engine_options(o, config));
  auto f = engine.compile(moe::eval_function(model, rows, seq));
  f.bind(state);
  auto e = moe::evaluate(f, config, windows, rows);
  double bpb = std::nan("");
  if (opened.tokenizer)
    bpb = e.ce * double(e.tokens) / std::numbers::ln2 /
          double(moe::predicted_bytes(*opened.tokenizer, tokens));
  if (o.json) {
    nlohmann::ordered_json j = {{"tokens", e.tokens},
                                {"loss", e.ce},
                                {"perplexity", std::exp(e.ce)},
                                {"bits_per_byte", bpb},
                                {"expert_load", e.load}};
    fmt::print("{}\n", j.dump());
    return;
  }
  fmt::print(
      "tokens         {}\nloss           {:.4f} nats a token\n"
      "perplexity     {:.3f}\nbits per byte  {:.4f}\n",
      e.tokens, e.ce, std::exp(e.ce), bpb);
  for (size_t l = 0; l < e.load.size(); ++l)
    fmt::print("MoE layer {} load: {}\n", l, fmt::join(e.load[l], " "));
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("eval", "Loss of a checkpoint on a file");
  c->add_option("checkpoint", o->checkpoint, "Step folder or run folder")
      ->required();
  add_data_flag(*c, o->data)->required();
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
