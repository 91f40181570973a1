#include "models/moe/evaluation.h"

#include <algorithm>

namespace moec::moe {

Evaluation evaluate(Function& eval, const Config& config,
                    const EvalWindows& windows, i64 rows, i64 batches) {
  i64 n = windows.batches(rows);
  if (batches > 0) n = std::min(n, batches);
  Evaluation e;
  e.load.assign(size_t(config.num_moe_layers()),
                std::vector<i64>(size_t(config.moe.experts)));
  double total = 0;
  for (i64 b = 0; b < n; ++b) {
    TokenBatch batch = windows.batch(b, rows);
    std::ranges::copy(batch.tokens, eval.input<int32_t>("tokens").begin());
    std::ranges::copy(batch.targets, eval.input<int32_t>("targets").begin());
    eval.run();
    double count = eval.output<float>("count")[0];
    e.ce += count * eval.output<float>("ce")[0];
    e.aux += count * eval.output<float>("aux")[0];
    e.z += count * eval.output<float>("z")[0];
    total += count;
    if (e.load.empty()) continue;
    auto load = eval.output<int32_t>("load");
    size_t at = 0;
    for (auto& layer : e.load)
      for (auto& expert : layer) expert += load[at++];
  }
  e.tokens = i64(total);
  total = std::max(total, 1.0);
  e.ce /= total;
  e.aux /= total;
  e.z /= total;
  e.loss = e.ce + config.moe.aux_coef * e.aux + config.moe.z_coef * e.z;
  return e;
}

}  // namespace moec::moe
