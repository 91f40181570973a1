// The gradient of a whole model against finite differences, in double.
#include <cmath>

#include "ir/interpreter.h"
#include "passes/pass_manager.h"
#include "support/rng.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

TEST_CASE("gradients equal central differences in f64") {
  for (auto& set : variants()) {
    CAPTURE(set);
    SmallModel m(small_config(set));
    auto loss = loss_function(m.model, 2, 6);
    auto grad = grad_function(m.model, 2, 6);
    PassContext context;
    run_passes(*grad, {"grad"}, context);

    std::vector<moec::Tensor> args;
    for (auto& p : m.model.parameters().all()) {
      auto values = m.state.f32(p.name);
      args.push_back(
          {Type{DType::F32, p.dims}, {values.begin(), values.end()}});
    }
    for (uint64_t seed : {3, 4}) {
      auto ids = random_ids(12, 11, seed);
      args.push_back(
          moec::Tensor{Type{DType::I32, {2, 6}}, {ids.begin(), ids.end()}});
    }
    auto analytic = interpret(*grad, args, Precision::F64);
    auto value = [&] {
      return interpret(*loss, args, Precision::F64)[0].data[0];
    };
    double worst = 0;
    int params = m.model.parameters().size();
    for (int p = 0; p < params; ++p) {
      auto& data = args[size_t(p)].data;
      // A few elements of each parameter; their choice is seeded.
      for (int sample = 0; sample < 3; ++sample) {
        auto i = size_t(
            uint64_t(random_word(1, uint64_t(p), sample)) * data.size() >> 32);
        double old = data[i], h = 1e-5;
        data[i] = old + h;
        double up = value();
        data[i] = old - h;
        double down = value();
        data[i] = old;
        double numeric = (up - down) / (2 * h);
        double g = analytic[size_t(p) + 2].data[i];
        double error = std::abs(g - numeric) / (1e-3 + std::abs(numeric));
        if (error > worst) {
          worst = error;
          INFO(m.model.parameters()[p].name);
        }
      }
    }
    CHECK(worst < 1e-4);
  }
}

}  // namespace
}  // namespace moec::moe
