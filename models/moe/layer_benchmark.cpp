// An expert layer alone, against a dense one of the same active FLOPs.
#include <algorithm>
#include <chrono>

#include "models/moe/fuse_benchmark.h"
#include "models/moe/router.h"
#include "support/error.h"
#include "support/rng.h"

namespace moec::moe {
namespace {

using namespace dsl;

// x, r [N,d] -> d sum(layer(x) * r) / d (x, parameters).
template <class Layer>
std::unique_ptr<Graph> layer_function(std::string name, const Parameters& p,
                                      Dims dims, const Layer& layer) {
  return trace(std::move(name), p, [&] {
    Tensor x = input("x", DType::F32, dims), r = input("r", DType::F32, dims);
    std::vector<Tensor> wrt = parameter_tensors();
    wrt.push_back(x);
    auto grads = grad(sum(layer(x) * r), wrt);
    Outputs out;
    for (size_t i = 0; i < grads.size(); ++i)
      out.push_back({"grad" + std::to_string(i), grads[i]});
    return out;
  });
}

// A compiled layer on seeded values.
struct Runner {
  Runner(const EngineOptions& o, const Parameters& p, std::unique_ptr<Graph> g,
         uint64_t seed)
      : engine(o), f(engine.compile(std::move(g))) {
    init_parameters(state, p, seed);
    f.bind(state);
    for (auto name : {"x", "r"}) {
      auto values = f.input<float>(name);
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = normal_from_word(random_word(seed, 11, int64_t(i)));
    }
  }

  void time() {
    auto start = std::chrono::steady_clock::now();
    f.run();
    std::chrono::duration<double, std::milli> ms =
        std::chrono::steady_clock::now() - start;
    times.push_back(ms.count());
  }
  double median() {
    std::ranges::sort(times);
    return times[times.size() / 2];
  }

  Engine engine;
  Function f;
  State state;
  std::vector<double> times;
};

}  // namespace

LayerBenchmark bench_layer(const Config& config, const EngineOptions& fused,
                           i64 rounds) {
  auto& m = config.model;
  if (config.moe.experts == 0)
    user_error("the config has no experts, so there is no layer to compare");
  const i64 tokens = config.train.batch * config.train.seq;
  const i64 active = config.moe.top_k + config.moe.shared_experts;
  const Dims dims{tokens, m.d_model};

  Parameters experts, plain;
  Moe moe(At(experts) / "moe", config);
  DenseFfn ffn(At(plain) / "ffn", m, m.ffn, m.d_ff * active);
  RouteContext context;
  context.rows = config.train.batch;
  context.capacity = config.moe.capacity > 0;
  auto moe_graph = [&] {
    return layer_function("moe_layer", experts, dims, [&](Tensor x) {
      Routing routing;
      return moe(x, context, routing);
    });
  };
  auto dense_graph = layer_function("dense_layer", plain, dims,
                                    [&](Tensor x) { return ffn(x); });

  EngineOptions grouped = fused;
  grouped.fuse = "off";
  grouped.moe = "grouped";
  const auto seed = uint64_t(config.train.seed);
  Runner a(fused, experts, moe_graph(), seed);
  Runner b(grouped, experts, moe_graph(), seed);
  Runner c(fused, plain, std::move(dense_graph), seed);
  double peak = a.engine.measure_peak();
  for (Runner* r : {&a, &b, &c}) r->f.run();
  for (i64 i = 0; i < rounds; ++i) {
    for (Runner* r : {&a, &b, &c}) r->time();
    peak = std::max(peak, a.engine.measure_peak());
  }
  LayerBenchmark out;
  out.fused_ms = a.median();
  out.grouped_ms = b.median();
  out.dense_ms = c.median();
  const double width = double(active * m.d_ff * (is_gated(m.ffn) ? 3 : 2));
  const double dense = 6.0 * double(tokens * m.d_model) * width;
  const double routed =
      dense + 6.0 * double(tokens * m.d_model) * double(config.moe.experts);
  if (peak > 0) {
    out.fused_peak_fraction = routed / (1e-3 * out.fused_ms) / peak;
    out.dense_peak_fraction = dense / (1e-3 * out.dense_ms) / peak;
  }
  return out;
}

}  // namespace moec::moe
