// A program outside the project: finds an installed moec, defines a model in
// the DSL, compiles its training step and trains it.
#include <moec/moec.h>

#include <cstdio>

using namespace moec;
using namespace moec::dsl;

int main() {
  Parameters params;
  At at(params);
  Linear line(at / "line", 1, 1, true);
  auto graph = trace("train_step", params, [&] {
    Tensor x = input("x", DType::F32, {8, 1});
    Tensor y = input("y", DType::F32, {8, 1});
    Tensor lr = input("lr", DType::F32, {});
    Tensor step = input("step", DType::F32, {});
    auto [loss, grads] =
        value_and_grad([&] { return mean(square(line(x) - y)); });
    AdamWStep update = adamw(params, grads, lr, step, {.weight_decay = 0});
    Outputs outputs = update.outputs;
    outputs.push_back({"loss", loss});
    return outputs;
  });

  moe::State state;
  moe::init_parameters(state, params, /*seed=*/1);
  moe::Engine engine(moe::EngineOptions{});
  moe::Function f = engine.compile(std::move(graph));
  for (auto& spec : f.inputs())
    if (spec.name.starts_with("adamw.")) state.add(spec);
  f.bind(state);
  for (int step = 1; step <= 400; ++step) {
    for (int i = 0; i < 8; ++i) {
      f.input<float>("x")[size_t(i)] = float(i) / 4 - 1;
      f.input<float>("y")[size_t(i)] = 3 * (float(i) / 4 - 1) + 1;
    }
    f.input<float>("lr")[0] = 0.05f;
    f.input<float>("step")[0] = float(step);
    f.run();
  }
  float loss = f.output<float>("loss")[0];
  float slope = state.f32("line.weight")[0], shift = state.f32("line.bias")[0];
  std::printf("y = %.4f x + %.4f, loss %.2e\n", slope, shift, loss);
  if (!(loss < 1e-4f)) return 1;
  std::printf("consumer: fine\n");
}
