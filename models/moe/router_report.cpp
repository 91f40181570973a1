#include "models/moe/router_report.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <cmath>

#include "models/moe/functions.h"
#include "runtime/token_source.h"

namespace moec::moe {
namespace {

using Counts = absl::flat_hash_map<int32_t, i64>;

std::vector<int32_t> most_frequent(const Counts& counts, size_t most) {
  std::vector<std::pair<i64, int32_t>> order;
  for (auto& [token, n] : counts) order.push_back({-n, token});
  std::ranges::sort(order);
  if (order.size() > most) order.resize(most);
  std::vector<int32_t> tokens;
  for (auto& [n, token] : order) tokens.push_back(token);
  return tokens;
}

LayerReport summarize(const std::vector<Counts>& experts) {
  LayerReport layer;
  double total = 0;
  for (auto& counts : experts) {
    auto& e = layer.experts.emplace_back();
    for (auto& [token, n] : counts) e.choices += n;
    e.tokens = most_frequent(counts, 8);
    total += double(e.choices);
  }
  for (auto& e : layer.experts) {
    e.share = double(e.choices) / std::max(total, 1.0);
    if (e.choices == 0)
      ++layer.dead;
    else
      layer.entropy -= e.share * std::log(e.share);
  }
  if (experts.size() > 1) layer.entropy /= std::log(double(experts.size()));
  return layer;
}

}  // namespace

std::vector<LayerReport> report_routing(Engine& engine,
                                        const Transformer& model, State& state,
                                        const TokenSource& tokens) {
  auto& c = model.config();
  auto layers = size_t(c.num_moe_layers());
  std::vector<std::vector<Counts>> counts(
      layers, std::vector<Counts>(size_t(c.moe.experts)));
  if (layers == 0) return {};
  EvalWindows windows(tokens, c.train.seq);
  i64 rows = std::min(c.train.batch, windows.windows());
  Function f = engine.compile(routes_function(model, rows, c.train.seq));
  f.bind(state);
  for (i64 b = 0; b < windows.batches(rows); ++b) {
    TokenBatch batch = windows.batch(b, rows);
    std::ranges::copy(batch.tokens, f.input<int32_t>("tokens").begin());
    f.run();
    auto routes = f.output<int32_t>("routes").data();
    for (auto& layer : counts)
      for (size_t n = 0; n < batch.tokens.size(); ++n)
        for (i64 k = 0; k < c.moe.top_k; ++k, ++routes)
          if (batch.targets[n] >= 0) ++layer[size_t(*routes)][batch.tokens[n]];
  }
  std::vector<LayerReport> out;
  for (auto& layer : counts) out.push_back(summarize(layer));
  return out;
}

}  // namespace moec::moe
