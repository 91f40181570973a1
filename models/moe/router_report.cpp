#include "models/moe/router_report.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <cmath>

#include "models/moe/functions.h"

namespace moec::moe {
namespace {

constexpr size_t kListed = 12, kExcerpt = 400;

using Counts = absl::flat_hash_map<int32_t, i64>;

// The highest by `score`, ties by token; those with a score of 0 are left out.
template <class Score>
std::vector<TokenChoices> highest(const std::vector<TokenChoices>& all,
                                  Score score) {
  std::vector<std::pair<double, TokenChoices>> order;
  for (auto& t : all)
    if (double s = score(t); s > 0) order.push_back({-s, t});
  auto by = [](auto& x) { return std::pair(x.first, x.second.token); };
  std::ranges::sort(order, {}, by);
  if (order.size() > kListed) order.resize(kListed);
  std::vector<TokenChoices> out;
  for (auto& [s, t] : order) out.push_back(t);
  return out;
}

LayerReport summarize(const std::vector<Counts>& experts) {
  LayerReport layer;
  Counts by_token;
  std::vector<i64> choices;
  i64 total = 0;
  for (auto& counts : experts) {
    i64 sum = 0;
    for (auto& [token, n] : counts) {
      sum += n;
      by_token[token] += n;
    }
    choices.push_back(sum);
    total += sum;
  }
  layer.load = load_stats(choices);
  for (size_t i = 0; i < experts.size(); ++i) {
    auto& e = layer.experts.emplace_back();
    e.choices = choices[i];
    e.share = double(e.choices) / double(std::max<i64>(total, 1));
    std::vector<TokenChoices> tokens;
    for (auto& [token, n] : experts[i])
      tokens.push_back({token, n, double(n) / double(by_token[token])});
    e.frequent = highest(tokens, [](auto& t) { return double(t.choices); });
    e.typical = highest(tokens, [&](auto& t) {
      return double(t.choices) * std::log(t.share / e.share);
    });
  }
  return layer;
}

}  // namespace

RoutingReport report_routing(Engine& engine, const Transformer& model,
                             State& state, const TokenSource& tokens) {
  auto& c = model.config();
  auto layers = size_t(c.num_moe_layers());
  RoutingReport report;
  if (layers == 0) return report;
  std::vector<std::vector<Counts>> counts(
      layers, std::vector<Counts>(size_t(c.moe.experts)));
  report.layers.resize(layers);
  std::vector<std::vector<int32_t>> first(layers);
  EvalWindows windows(tokens, c.train.seq);
  i64 rows = std::min(c.train.batch, windows.windows());
  Function f = engine.compile(routes_function(model, rows, c.train.seq));
  f.bind(state);
  for (i64 b = 0; b < windows.batches(rows); ++b) {
    TokenBatch batch = windows.batch(b, rows);
    std::ranges::copy(batch.tokens, f.input<int32_t>("tokens").begin());
    f.run();
    auto routes = f.output<int32_t>("routes").data();
    for (size_t l = 0; l < layers; ++l)
      for (size_t n = 0; n < batch.tokens.size(); ++n, routes += c.moe.top_k) {
        if (batch.targets[n] < 0) continue;
        if (first[l].size() < kExcerpt) {
          first[l].push_back(routes[0]);
          if (l == 0) report.excerpt.push_back(batch.tokens[n]);
        }
        for (i64 k = 0; k < c.moe.top_k; ++k)
          ++counts[l][size_t(routes[k])][batch.tokens[n]];
      }
  }
  for (size_t l = 0; l < layers; ++l) {
    report.layers[l] = summarize(counts[l]);
    report.layers[l].first = std::move(first[l]);
  }
  return report;
}

}  // namespace moec::moe
