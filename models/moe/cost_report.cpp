#include "models/moe/cost_report.h"

#include <algorithm>

#include "codegen/backend.h"
#include "models/moe/flops.h"
#include "models/moe/functions.h"

namespace moec::moe {

CostReport report_costs(Engine& engine, const Transformer& model) {
  auto& c = model.config();
  auto& params = model.parameters();
  CostReport r;
  r.parameters = params.count();
  r.active_parameters = active_parameters(c, params);
  r.flops_per_token = train_flops_per_token(c);
  r.parameter_bytes = 4 * r.parameters;
  r.moment_bytes = 8 * r.parameters;
  // Of several parts of a step the one with the model is the larger.
  Function f =
      engine.compile(c.train.accumulate > 1 ? accumulate_function(model)
                                            : train_step_function(model));
  auto& info = f.compiled().info();
  r.temporary_bytes = f.planned_bytes();
  if (c.train.accumulate > 1) r.temporary_bytes += r.parameter_bytes;
  r.step_flops = double(info.flops) * double(c.train.accumulate);
  r.step_bytes = double(info.bytes) * double(c.train.accumulate);
  r.launches = info.launches;
  r.decode_bytes = active_weights(c) * (c.train.dtype == "bf16" ? 2 : 4);
  r.peak = engine.measure_peak();
  // Read like the weights, from beyond the caches.
  r.bandwidth = engine.measure_bandwidth(
      std::clamp<i64>(r.parameter_bytes, 64 << 20, 1 << 30));
  return r;
}

}  // namespace moec::moe
