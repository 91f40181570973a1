#include "models/moe/fusion_check.h"

#include <algorithm>
#include <cmath>

#include "models/moe/chronicle.h"
#include "models/moe/functions.h"
#include "models/moe/model_io.h"
#include "models/moe/schedule.h"

namespace moec::moe {
namespace {

// The batch of a step: rows of the text one after the other.
void fill_batch(Function& f, const Config& c, const std::string& text,
                i64 step) {
  auto tokens = f.input<int32_t>("tokens");
  auto targets = f.input<int32_t>("targets");
  auto id = [&](size_t at) {
    return int32_t(int64_t(uint8_t(text[at % text.size()])) % c.model.vocab);
  };
  for (size_t i = 0; i < tokens.size(); ++i) {
    size_t at = size_t(step) * tokens.size() + i;
    tokens[i] = id(at);
    targets[i] = id(at + 1);
  }
}

void train(Function& f, const Config& c, const std::string& text, i64 step) {
  fill_batch(f, c, text, step);
  f.input<float>("lr")[0] = float(learning_rate(c.train, step));
  f.input<float>("step")[0] = float(step + 1);
  std::ranges::copy(step_key(uint64_t(c.train.seed), step, 0),
                    f.input<uint32_t>("key").begin());
  f.run();
}

// Some weights of each parameter, an ulp off.
void disturb(State& state, const dsl::Parameters& params) {
  for (auto& p : params.all()) {
    auto w = state.f32(p.name);
    for (size_t i = 0; i < w.size(); i += 1000)
      w[i] = std::nextafter(w[i], 2 * w[i]);
  }
}

// Tokens whose experts are not the same; routes [..., top_k].
i64 moved(std::span<const int32_t> a, std::span<const int32_t> b, i64 top_k) {
  i64 n = 0;
  for (size_t at = 0; at < a.size(); at += size_t(top_k)) {
    auto sorted = [&](std::span<const int32_t> routes) {
      auto choices = routes.subspan(at, size_t(top_k));
      std::vector<int32_t> s(choices.begin(), choices.end());
      std::ranges::sort(s);
      return s;
    };
    n += sorted(a) != sorted(b);
  }
  return n;
}

double relative(double a, double b) {
  return std::abs(a - b) / std::max(std::abs(b), 1e-30);
}

constexpr double kAlike = 1e-5;  // of losses, before they drift apart

// The larger one; a NaN stays.
void raise(double& worst, double value) {
  if (!(value <= worst) && !std::isnan(worst)) worst = value;
}

}  // namespace

GradientDifference gradient_difference(const dsl::Parameters& params,
                                       const GradientOf& a,
                                       const GradientOf& b) {
  std::vector<double> norms, distances;
  double all = 0;
  for (auto& p : params.all()) {
    auto x = a(p.name), y = b(p.name);
    double norm = 0, distance = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      norm += double(y[i]) * y[i];
      distance += (double(x[i]) - y[i]) * (double(x[i]) - y[i]);
    }
    norms.push_back(norm);
    distances.push_back(distance);
    all += norm;
  }
  GradientDifference worst;
  for (size_t i = 0; i < norms.size(); ++i) {
    double least = std::max(1e-6 * all, 1e-60);
    double before = worst.value;
    raise(worst.value, std::sqrt(distances[i] / std::max(norms[i], least)));
    if (worst.value != before) worst.of = params[int(i)].name;
  }
  return worst;
}

FusionCheck check_fusion(const Config& config, const EngineOptions& a,
                         const EngineOptions& b, const CheckOptions& o) {
  auto& t = config.train;
  const std::string text = chronicle({.bytes = 200000});
  Transformer model(config);
  auto& params = model.parameters();
  Engine first(a), second(b);
  FusionCheck r;
  {
    State state;
    init_parameters(state, params, uint64_t(t.seed));
    add_moments(state, params);
    Function step = first.compile(train_step_function(model));
    Function grads[] = {first.compile(grad_function(model, t.batch, t.seq)),
                        second.compile(grad_function(model, t.batch, t.seq))};
    std::vector<Function> routes;
    if (config.num_moe_layers() > 0)
      for (Engine* e : {&first, &second})
        routes.push_back(e->compile(routes_function(model, t.batch, t.seq)));
    step.bind(state);
    for (auto& f : grads) f.bind(state);
    for (auto& f : routes) f.bind(state);
    for (i64 i = 0; i <= (o.points - 1) * o.every; ++i) {
      if (i % o.every == 0) {
        for (auto& f : grads) {
          fill_batch(f, config, text, i);
          f.run();
        }
        raise(r.loss, relative(grads[0].output<float>("loss")[0],
                               grads[1].output<float>("loss")[0]));
        auto of = [](Function& f) -> GradientOf {
          return [&f](const std::string& name) {
            return f.output<float>("grad." + name);
          };
        };
        auto d = gradient_difference(params, of(grads[0]), of(grads[1]));
        double before = r.grad;
        raise(r.grad, d.value);
        if (r.grad != before) r.grad_of = d.of;
        i64 elsewhere = 0;
        if (!routes.empty()) {
          for (auto& f : routes) {
            std::ranges::copy(grads[0].input<int32_t>("tokens"),
                              f.input<int32_t>("tokens").begin());
            f.run();
          }
          elsewhere =
              moved(routes[0].output<int32_t>("routes"),
                    routes[1].output<int32_t>("routes"), config.moe.top_k);
        }
        r.moved_tokens += elsewhere, r.moved_points += elsewhere > 0;
        if (!elsewhere) raise(r.settled_grad, d.value);
      }
      train(step, config, text, i);
      r.last_loss = step.output<float>("loss")[0];
      if (i == 0) r.first_loss = r.last_loss;
    }
  }
  if (o.free_steps == 0) return r;
  State states[3];
  std::vector<Function> steps;
  std::vector<Engine*> engines = {&first, &second};
  if (o.control) engines.push_back(&first);
  for (Engine* e : engines) {
    State& state = states[steps.size()];
    init_parameters(state, params, uint64_t(t.seed));
    if (steps.size() == 2) disturb(state, params);
    add_moments(state, params);
    steps.push_back(e->compile(train_step_function(model)));
    steps.back().bind(state);
  }
  auto loss = [&](size_t i) { return steps[i].output<float>("loss")[0]; };
  for (i64 i = 0; i < o.free_steps; ++i) {
    for (Function& f : steps) train(f, config, text, i);
    raise(r.free_loss, relative(loss(0), loss(1)));
    r.free_alike += r.free_loss <= kAlike;
    if (o.control) {
      raise(r.control_loss, relative(loss(0), loss(2)));
      r.control_alike += r.control_loss <= kAlike;
    }
    r.last_loss = loss(0);
  }
  return r;
}

}  // namespace moec::moe
