// moec generate: text or token ids from a checkpoint.
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "driver/commands.h"
#include "driver/common.h"
#include "models/moe/generation.h"
#include "models/moe/model_io.h"
#include "support/error.h"

namespace moec {
namespace {

struct Options : RunFlags {
  std::string checkpoint;
  std::vector<std::string> prompts, prompt_ids, stop;
  moe::GenerateOptions generate;
  bool ids = false, stats = false;
};

// The text of one row as it grows; ends it at a stop text.
struct Row {
  std::optional<StreamDecoder> decoder;
  std::string text;
  size_t shown = 0;
  bool stopped = false;

  bool add(int32_t id, const std::vector<std::string>& stops) {
    size_t before = text.size();
    if (decoder) text += decoder->add(uint32_t(id));
    for (auto& s : stops) {
      auto at = text.find(s, before - std::min(before, s.size()));
      if (at == text.npos) continue;
      text.resize(at);
      stopped = true;
    }
    return !stopped;
  }

  // What is new and no beginning of a stop text.
  std::string show(const std::vector<std::string>& stops) {
    size_t held = 0;
    for (auto& s : stops)
      for (size_t n = std::min(s.size(), text.size()); n > held; --n)
        if (!stopped && text.ends_with(std::string_view(s).substr(0, n)))
          held = n;
    size_t from = std::min(shown, text.size() - held);
    shown = std::max(shown, text.size() - held);
    return text.substr(from, shown - from);
  }
};

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

std::vector<std::vector<int32_t>> read_prompts(
    const Options& o, const std::optional<Tokenizer>& tokenizer) {
  std::vector<std::vector<int32_t>> prompts;
  if (!o.prompts.empty() && !tokenizer)
    user_error("{}: has no tokenizer; use --prompt-ids and --ids",
               o.checkpoint);
  for (auto& p : o.prompts) {
    auto ids = tokenizer->encode(p);
    if (ids.empty()) usage_error("--prompt is empty");
    prompts.emplace_back(ids.begin(), ids.end());
  }
  for (auto& p : o.prompt_ids) prompts.push_back(parse_ids(p, "--prompt-ids"));
  if (prompts.empty()) usage_error("give --prompt TEXT or --prompt-ids 1,2,3");
  return prompts;
}

void run(const Options& o) {
  double start = seconds();
  check(o.generate.sampling);
  auto opened = moe::open_model(o.checkpoint, o.set);
  moe::Transformer model(opened.config);
  moe::State state;
  moe::load_for_inference(state, model, opened);
  moe::Engine engine(engine_options(o, opened.config));
  moe::Generator generator(engine, model, state);
  auto prompts = read_prompts(o, opened.tokenizer);
  if (!opened.tokenizer && !o.ids)
    user_error("{}: has no tokenizer; use --ids", o.checkpoint);
  // Ids alone may be any of the model's, also such as are no text.
  bool text = opened.tokenizer && (!o.ids || o.json || !o.stop.empty());
  std::vector<Row> rows(prompts.size());
  for (auto& r : rows)
    if (text) r.decoder.emplace(*opened.tokenizer);
  bool stream = prompts.size() == 1 && !o.ids && !o.json;
  if (stream && !o.prompts.empty()) fmt::print("{}", o.prompts[0]);
  auto options = o.generate;
  if (text) options.ids = opened.tokenizer->vocab_size();
  if (opened.hf) options.eos = moe::hf_eos(*opened.hf);
  double first = 0;
  i64 count = 0;
  auto out = generator.generate(prompts, options, [&](i64 r, int32_t id) {
    if (count++ == 0) first = seconds();
    auto& row = rows[size_t(r)];
    bool end = std::ranges::find(options.eos, id) != options.eos.end();
    bool more = end || row.add(id, o.stop);
    if (stream) {
      fmt::print("{}", row.show(o.stop));
      std::fflush(stdout);
    }
    return more;
  });
  double end = seconds();
  for (size_t r = 0; r < rows.size(); ++r) {
    auto& row = rows[r];
    if (row.decoder && !row.stopped) row.text += row.decoder->finish();
    if (o.json) continue;
    if (o.ids)
      fmt::print("{}\n", fmt::join(out[r], ","));
    else if (stream)
      fmt::print("{}\n", row.show({}));
    else
      fmt::print("{}{}\n", r < o.prompts.size() ? o.prompts[r] : "", row.text);
  }
  double rate = count > 1 ? double(count - 1) / (end - first) : 0;
  if (o.stats)
    fmt::print(stderr,
               "{} tokens; first after {:.3f} s, then {:.1f} tokens/s\n", count,
               first - start, rate);
  if (!o.json) return;
  nlohmann::ordered_json j = {{"ids", out}, {"tokens", count}};
  if (text)
    for (auto& r : rows) j["text"].push_back(r.text);
  j["first_token_s"] = first - start;
  j["tokens_per_s"] = rate;
  fmt::print("{}\n",
             j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("generate", "Write text with a model");
  c->add_option("checkpoint", o->checkpoint, "Step folder or run folder")
      ->required();
  auto& s = o->generate.sampling;
  c->add_option("--prompt", o->prompts, "Text to continue (repeatable)")
      ->allow_extra_args(false);
  c->add_option("--prompt-ids", o->prompt_ids, "Token ids to continue: 1,2,3")
      ->allow_extra_args(false);
  c->add_flag("--ids", o->ids, "Print the new token ids");
  c->add_option("--max-tokens", o->generate.max_tokens, "New tokens at most")
      ->check(CLI::NonNegativeNumber);
  c->add_option("--temperature", s.temperature, "0: the most likely token");
  c->add_option("--top-k", s.top_k, "Only the k most likely; 0: all");
  c->add_option("--top-p", s.top_p, "The fewest that reach this probability");
  c->add_option("--min-p", s.min_p, "At least this share of the likeliest's");
  c->add_option("--repetition-penalty", s.repetition_penalty,
                "More than 1: avoid tokens of the context");
  c->add_option("--stop", o->stop, "End before this text (repeatable)")
      ->allow_extra_args(false);
  c->add_option("--seed", s.seed, "Of the choices");
  c->add_flag("--stats", o->stats, "Speed, to stderr");
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
