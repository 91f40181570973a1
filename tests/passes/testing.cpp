#include "tests/passes/testing.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "ir/text.h"

namespace moec {

std::vector<Tensor> random_inputs(const Graph& g, uint64_t seed, i64 limit) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal;
  std::vector<Tensor> inputs;
  for (Node* a : g.args()) {
    Tensor t = Tensor::zeros(a->type());
    for (double& x : t.data) {
      switch (a->type().dtype) {
        case DType::I32:
        case DType::I64: x = double(rng() % uint64_t(limit)); break;
        case DType::U32: x = double(uint32_t(rng())); break;
        case DType::Bool: x = double(rng() % 2); break;
        default: x = normal(rng);
      }
    }
    inputs.push_back(std::move(t));
  }
  return inputs;
}

double max_difference(const std::vector<Tensor>& a,
                      const std::vector<Tensor>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].type != b[i].type) return INFINITY;
    for (size_t j = 0; j < a[i].data.size(); ++j) {
      double x = a[i].data[j], y = b[i].data[j];
      if (x == y || (std::isnan(x) && std::isnan(y))) continue;
      double d = std::abs(x - y) / std::max({1.0, std::abs(x), std::abs(y)});
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
  }
  return worst;
}

double change_by(std::string_view text, const std::vector<std::string>& passes,
                 const PipelineOptions& options, i64 limit) {
  auto before = parse_graph(text);
  auto after = before->clone();
  PassContext ctx;
  ctx.options = options;
  run_passes(*after, passes, ctx);
  auto inputs = random_inputs(*before, 7, limit);
  return max_difference(interpret(*before, inputs, Precision::F64),
                        interpret(*after, inputs, Precision::F64));
}

int count_ops(const Graph& g, Op op) {
  int n = 0;
  for (Node* node : g) n += node->op() == op;
  return n;
}

}  // namespace moec
