// A model of its own, defined in the DSL, compiled and trained without the
// driver: a multi-layer perceptron that learns to add two angles.
#include <moec/moec.h>

#include <cmath>
#include <cstdio>

using namespace moec;
using namespace moec::dsl;

int main() {
  constexpr i64 kBatch = 256;
  Parameters params;
  At at(params);
  Linear in(at / "in", 2, 64, true, normal(0.5));
  Linear mid(at / "mid", 64, 64, true, normal(0.12));
  Linear out(at / "out", 64, 1, true, normal(0.12));

  auto graph = trace("train_step", params, [&] {
    Tensor x = input("x", DType::F32, {kBatch, 2});
    Tensor y = input("y", DType::F32, {kBatch, 1});
    Tensor lr = input("lr", DType::F32, {});
    Tensor step = input("step", DType::F32, {});
    auto [loss, grads] = value_and_grad([&] {
      Tensor h = gelu(in(x));
      h = h + gelu(mid(h));
      return mean(square(out(h) - y));
    });
    AdamWStep update = adamw(params, grads, lr, step, {.clip = 1.0});
    Outputs outputs = update.outputs;
    outputs.push_back({"loss", loss});
    return outputs;
  });
  std::printf("%s", print(*graph).c_str());

  moe::State state;
  moe::init_parameters(state, params, /*seed=*/1);
  moe::Engine engine(moe::EngineOptions{});
  moe::Function f = engine.compile(std::move(graph));
  for (auto& spec : f.inputs())
    if (spec.name.starts_with("adamw.")) state.add(spec);
  f.bind(state);
  float loss = 0;
  for (int step = 1; step <= 300; ++step) {
    auto x = f.input<float>("x"), y = f.input<float>("y");
    for (i64 i = 0; i < kBatch; ++i) {
      x[2 * i] = std::sin(float(7 * i + step));
      x[2 * i + 1] = std::cos(float(11 * i - 3 * step));
      y[i] = std::sin(2 * x[2 * i] + x[2 * i + 1]);
    }
    f.input<float>("lr")[0] = 3e-3f;
    f.input<float>("step")[0] = float(step);
    f.run();
    loss = f.output<float>("loss")[0];
    if (step % 50 == 0) std::printf("step %d loss %.5f\n", step, loss);
  }
  return loss < 0.01f ? 0 : 1;
}
