#include "models/moe/trainer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "models/moe/data.h"
#include "models/moe/evaluation.h"
#include "models/moe/flops.h"
#include "models/moe/functions.h"
#include "models/moe/generation.h"
#include "models/moe/load_stats.h"
#include "models/moe/model_io.h"
#include "models/moe/run_config.h"
#include "models/moe/schedule.h"
#include "runtime/executable.h"
#include "runtime/metrics.h"
#include "runtime/run_folder.h"
#include "runtime/signals.h"
#include "support/cpu.h"
#include "support/error.h"
#include "support/progress.h"

namespace moec::moe {
namespace {

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// What one step reports.
struct StepResult {
  double loss = 0, ce = 0, aux = 0, z = 0, grad_norm = 0;
  std::vector<std::vector<i64>> load;  // [MoE layer][expert]: choices
};

class Trainer {
 public:
  explicit Trainer(TrainOptions o, RunFolder& folder, RunStart start)
      : options_(std::move(o)),
        config_(start.config),
        folder_(folder),
        corpus_(std::move(start.corpus)),
        checkpoint_(std::move(start.checkpoint)),
        hf_(std::move(start.hf)),
        model_(config_),
        engine_(options_.engine),
        windows_(corpus_.train, config_.train.seq,
                 uint64_t(config_.train.seed)),
        generator_(engine_, model_, state_) {}

  TrainReport run();

 private:
  void load_state();
  void compile();
  // Either train_step alone, or accumulate and update.
  struct StepFunctions {
    Function step;
    std::optional<Function> update;
    Function& last() { return update ? *update : step; }
  };
  StepFunctions compile_step(Engine& engine);
  StepResult step(StepFunctions& f, i64 number);
  void check_finite(i64 number, const StepResult& r);
  std::string find_non_finite(i64 number);
  void rewind(i64 number);
  void run_part(Function& f, i64 number, i64 part);
  void read_losses(Function& f, StepResult& r, double weight);
  void report(i64 done, const StepResult& r, bool evaluate_now);
  void evaluate_and_sample(i64 done, std::vector<Metric>& metrics);
  void save(i64 done);
  std::string status(i64 done, const StepResult& r) const;

  TrainOptions options_;
  Config config_;
  RunFolder& folder_;
  Corpus corpus_;
  std::optional<Checkpoint> checkpoint_;
  std::optional<HfCarried> hf_;
  Transformer model_;
  State state_;
  Engine engine_;
  TrainWindows windows_;
  std::optional<EvalWindows> val_;
  Generator generator_;
  std::optional<StepFunctions> step_;
  std::optional<Function> eval_;
  std::optional<MetricsWriter> metrics_;
  Progress progress_;
  i64 first_ = 0;
  double started_ = 0, step_seconds_ = 0, mean_seconds_ = 0, busy_ = 0;
  double val_loss_ = std::numeric_limits<double>::quiet_NaN();
  double val_ce_ = val_loss_;
  double peak_ = 0;  // FLOP/s of all threads
};

void Trainer::load_state() {
  OpenedModel from;
  from.config = config_;
  from.checkpoint = checkpoint_;
  if (!checkpoint_ && options_.init)
    from.checkpoint = open_checkpoint(*options_.init);
  load_parameters(state_, model_.parameters(), from);
  add_moments(state_, model_.parameters());
  if (!checkpoint_) return;
  if (!checkpoint_->has_optimizer())
    user_error(
        "{}: has no optimizer state to resume from; --init starts a new "
        "run from its parameters",
        checkpoint_->folder.string());
  read_moments(state_, model_.parameters(), checkpoint_->optimizer());
  first_ = checkpoint_->step;
  // Or the next manifest would differ from that of a run never stopped.
  if (checkpoint_->val_loss) val_loss_ = *checkpoint_->val_loss;
}

Trainer::StepFunctions Trainer::compile_step(Engine& engine) {
  bool parts = config_.train.accumulate > 1;
  StepFunctions f{engine.compile(parts ? accumulate_function(model_)
                                       : train_step_function(model_)),
                  {}};
  if (parts) {
    f.update = engine.compile(update_function(model_));
    for (auto& spec : f.step.inputs())
      if (spec.name.starts_with("acc.")) state_.add(spec);
    f.update->bind(state_);
  }
  f.step.bind(state_);
  return f;
}

void Trainer::compile() {
  step_ = compile_step(engine_);
  if (corpus_.val.size() >= 2) {
    val_.emplace(corpus_.val, config_.train.seq);
    eval_ = engine_.compile(
        eval_function(model_, config_.train.batch, config_.train.seq));
    eval_->bind(state_);
  }
  std::vector<MemoryItem> items;
  i64 state = 0;
  for (auto& e : state_.all()) state += e.spec.bytes;
  i64 temporaries = step_->step.planned_bytes();
  for (auto* f : {&step_->update, &eval_})
    if (*f) temporaries = std::max(temporaries, (*f)->planned_bytes());
  items.push_back({"temporaries of a step", temporaries});
  items.push_back({"parameters and optimizer state", state});
  // The state is allocated, but not touched as a whole before a step.
  require_memory(items, available_memory());
}

void Trainer::run_part(Function& f, i64 number, i64 part) {
  auto& t = config_.train;
  TokenBatch batch = windows_.batch(number * t.accumulate + part, t.batch);
  std::ranges::copy(batch.tokens, f.input<int32_t>("tokens").begin());
  std::ranges::copy(batch.targets, f.input<int32_t>("targets").begin());
  if (auto key = f.input<uint32_t>("key"); !key.empty())
    std::ranges::copy(step_key(uint64_t(t.seed), number, part), key.begin());
}

void Trainer::read_losses(Function& f, StepResult& r, double weight) {
  r.loss += weight * f.output<float>("loss")[0];
  r.ce += weight * f.output<float>("ce")[0];
  r.aux += weight * f.output<float>("aux")[0];
  r.z += weight * f.output<float>("z")[0];
  auto layers = size_t(config_.num_moe_layers());
  if (layers == 0) return;
  r.load.resize(layers, std::vector<i64>(size_t(config_.moe.experts)));
  const int32_t* choices = f.output<int32_t>("load").data();
  for (auto& layer : r.load)
    for (i64& expert : layer) expert += *choices++;
}

StepResult Trainer::step(StepFunctions& f, i64 number) {
  auto& t = config_.train;
  StepResult r;
  Function& last = f.last();
  last.input<float>("lr")[0] = float(learning_rate(t, number));
  last.input<float>("step")[0] = float(number + 1);
  for (i64 part = 0; part < t.accumulate; ++part) {
    run_part(f.step, number, part);
    f.step.run();
    read_losses(f.step, r, 1.0 / double(t.accumulate));
  }
  if (f.update) f.update->run();
  r.grad_norm = last.output<float>("grad_norm")[0];
  return r;
}

void Trainer::check_finite(i64 number, const StepResult& r) {
  if (std::isfinite(r.loss) && std::isfinite(r.grad_norm)) return;
  std::string_view what = std::isfinite(r.loss) ? "the gradient" : "the loss";
  progress_.line(
      fmt::format("step {}: {} is not finite; looking for the op where that "
                  "begins (twice Ctrl-C stops)",
                  number + 1, what));
  std::string where = find_non_finite(number);
  auto kept = checkpoint_steps(folder_.path());
  user_error(
      "step {}: {} is not finite\n  {}\n  {}; a lower train.lr, "
      "train.clip = 1.0 or a longer train.warmup usually helps",
      number + 1, what, where,
      kept.empty() ? "no checkpoint was written yet"
                   : fmt::format("the checkpoints up to step {} are unharmed",
                                 kept.back()));
}

// The state before step `number`, in which steps have the same bits as they
// had: from the newest checkpoint, or from the start.
void Trainer::rewind(i64 number) {
  if (auto c = newest_checkpoint(folder_.path())) checkpoint_ = c;
  for (auto& e : state_.all()) std::ranges::fill(e.data.bytes(), std::byte{});
  load_state();
  for (i64 i = first_; i < number; ++i) step(*step_, i);
}

// Repeats the step without fusions, so that a single op can be named, and if
// nothing is found there, as it was.
std::string Trainer::find_non_finite(i64 number) {
  EngineOptions plain = options_.engine;
  plain.fuse = "off";
  if (plain.moe == "fused") plain.moe = "grouped";
  auto search = [&](Engine& engine) {
    StepFunctions f = compile_step(engine);
    NonFiniteWatch watch;
    f.step.set_watch(std::ref(watch));
    if (f.update) f.update->set_watch(std::ref(watch));
    MemoryItem need{"temporaries of the step without fusions",
                    f.step.planned_bytes()};
    require_memory({&need, 1}, available_memory());
    rewind(number);
    step(f, number);
    return watch.first();
  };
  try {
    Engine unfused(plain);
    if (auto found = search(unfused))
      return "without fusions it begins at " + to_string(*found);
    if (auto found = search(engine_))
      return "only with fusions; it begins at " + to_string(*found);
  } catch (const UserError& e) {
    return fmt::format("the step could not be repeated: {}", e.what());
  }
  return "repeated, the step is finite: memory was damaged, or moec has a race "
         "(please report it)";
}

std::string Trainer::status(i64 done, const StepResult& r) const {
  auto& t = config_.train;
  double tokens = double(t.batch * t.seq * t.accumulate);
  auto s = fmt::format("step {}/{}  loss {:.4f}", done, t.steps, r.loss);
  if (std::isfinite(val_loss_)) s += fmt::format("  val {:.4f}", val_loss_);
  s += fmt::format("  {:.0f} tokens/s", tokens / mean_seconds_);
  if (peak_ > 0)
    s += fmt::format(
        "  {:.0f} % of peak",
        100 * tokens / mean_seconds_ * train_flops_per_token(config_) / peak_);
  double left =
      (now() - started_) / double(done - first_) * double(t.steps - done);
  return s + "  " + format_seconds(left) + " left";
}

// "experts, by layer: entropy 0.98 0.99, shares 9-31 18-30 %, 1 dead".
std::string load_line(const std::vector<std::vector<i64>>& load) {
  std::string entropy, shares;
  i64 dead = 0;
  for (auto& layer : load) {
    LoadStats s = load_stats(layer);
    entropy += fmt::format(" {:.3f}", s.entropy);
    shares += fmt::format(" {:.0f}-{:.0f}", 100 * s.least, 100 * s.most);
    dead += s.dead;
  }
  return fmt::format("experts, by layer: entropy{}, shares{} %{}", entropy,
                     shares, dead ? fmt::format(", {} dead", dead) : "");
}

void Trainer::evaluate_and_sample(i64 done, std::vector<Metric>& metrics) {
  if (!val_) return;
  Evaluation e = evaluate(*eval_, config_, *val_, config_.train.batch,
                          config_.train.eval_batches);
  val_loss_ = e.loss;
  val_ce_ = e.ce;
  metrics.insert(metrics.end(), {{"val_loss", e.loss},
                                 {"val_ce", e.ce},
                                 {"val_aux", e.aux},
                                 {"val_z", e.z}});
  progress_.line(
      fmt::format("step {}: validation loss {:.4f} (cross entropy "
                  "{:.4f}, perplexity {:.2f})",
                  done, e.loss, e.ce, std::exp(e.ce)));
  if (!e.load.empty()) progress_.line(load_line(e.load));
  if (!corpus_.tokenizer) return;
  GenerateOptions g;
  g.sampling.temperature = 0.8;
  g.sampling.top_k = 40;
  g.sampling.seed = uint64_t(done);
  g.max_tokens = 160;
  g.ids = corpus_.tokenizer->vocab_size();
  int32_t first = 0;
  corpus_.val.copy(0, {&first, 1});
  auto ids = generator_.generate({{first}}, g)[0];
  std::vector<uint32_t> text(ids.begin(), ids.end());
  progress_.line("| " + std::string(corpus_.tokenizer->decode(text)));
}

void Trainer::save(i64 done) {
  metrics_->sync();
  CheckpointContent c;
  c.step = done;
  c.cursor = done * config_.train.accumulate;
  if (std::isfinite(val_loss_)) c.val_loss = val_loss_;
  auto model = parameter_views(state_, model_.parameters());
  auto moments = moment_views(state_, model_.parameters());
  c.model = model;
  c.optimizer = moments;
  c.config_toml = checkpoint_config(config_);
  if (corpus_.tokenizer) c.tokenizer_json = corpus_.tokenizer->to_json();
  if (hf_) c.hf_json = to_json(*hf_);
  save_checkpoint(folder_.path(), c);
  prune_checkpoints(folder_.path(), config_.train.keep);
}

void Trainer::report(i64 done, const StepResult& r, bool evaluate_now) {
  auto& t = config_.train;
  std::vector<Metric> m = {
      {"loss", r.loss},
      {"ce", r.ce},
      {"aux", r.aux},
      {"z", r.z},
      {"lr", learning_rate(t, done - 1)},
      {"grad_norm", r.grad_norm},
      {"tokens_per_s", double(t.batch * t.seq * t.accumulate) / step_seconds_}};
  std::vector<JsonMetric> routing;
  if (!r.load.empty()) {
    std::vector<double> entropy;
    double mean = 0, dead = 0, layers = double(r.load.size());
    for (auto& layer : r.load) {
      LoadStats s = load_stats(layer);
      entropy.push_back(s.entropy);
      mean += s.entropy / layers;
      dead += double(s.dead) / layers;
    }
    m.push_back({"load_entropy", mean});
    m.push_back({"dead_experts", dead});
    routing = {{"entropy", fmt::format("[{}]", fmt::join(entropy, ","))},
               {"load", nlohmann::json(r.load).dump()}};
  }
  if (evaluate_now) evaluate_and_sample(done, m);
  metrics_->write(done, m, routing);
  progress_.status(status(done, r));
}

TrainReport Trainer::run() {
  auto& t = config_.train;
  load_state();
  double before = now();
  compile();
  progress_.line(fmt::format(
      "{} parameters, {} tokens of training text, {} of validation; compiled "
      "in {:.2f} s; {}",
      model_.parameters().count(), corpus_.train.size(), corpus_.val.size(),
      now() - before, folder_.path().string()));
  if (first_ > 0) progress_.line(fmt::format("resumed after step {}", first_));
  if (first_ > t.steps)
    usage_error("the run has {} steps already, and train.steps = {}", first_,
                t.steps);
  metrics_.emplace(folder_.metrics(), first_);
  peak_ = engine_.measure_peak();
  StopSignals signals;
  TrainReport report_out;
  report_out.folder = folder_.path();
  StepResult r;
  i64 done = first_;
  started_ = now();
  while (done < t.steps) {
    double start = now();
    r = step(*step_, done);
    check_finite(done++, r);
    step_seconds_ = now() - start;
    busy_ += step_seconds_;
    mean_seconds_ = done == first_ + 1
                        ? step_seconds_
                        : 0.9 * mean_seconds_ + 0.1 * step_seconds_;
    bool stop = signals.requested();
    bool last = done == t.steps;
    bool eval_now = last || (t.eval_every > 0 && done % t.eval_every == 0);
    report(done, r, eval_now);
    if (last || stop || (t.save_every > 0 && done % t.save_every == 0))
      save(done);
    if (stop && !last) {
      report_out.interrupted = true;
      break;
    }
  }
  if (t.steps == first_ && !checkpoint_) save(0);
  progress_.finish();
  report_out.step = done;
  report_out.loss = r.loss;
  report_out.val_loss = val_loss_;
  report_out.val_ce = val_ce_;
  report_out.tokens_per_s =
      double((done - first_) * t.batch * t.seq * t.accumulate) /
      std::max(busy_, 1e-9);
  return report_out;
}

}  // namespace

TrainReport train(TrainOptions o) {
  if (o.out.empty()) o.out = new_run_folder("runs", o.name);
  RunFolder folder(o.out, o.resume ? RunMode::Resume : RunMode::New);
  RunStart start = start_run(o, folder.path());
  return Trainer(std::move(o), folder, std::move(start)).run();
}

}  // namespace moec::moe
