#include "tests/ops/op_cases.h"

#include <cmath>
#include <numeric>

#include "support/error.h"
#include "support/rng.h"
#include "tests/ops/op_rows.h"

namespace moec {

const std::vector<OpCase>& op_cases() {
  static const auto* cases = [] {
    auto* all = new std::vector<OpCase>;
    add_elementwise_cases(*all);
    add_shape_cases(*all);
    add_reduce_cases(*all);
    add_matmul_cases(*all);
    add_model_cases(*all);
    add_generation_cases(*all);
    return all;
  }();
  return *cases;
}

bool runs_in_bf16(const OpCase& c) {
  if (c.op == Op::AdamW) return false;  // master weights are f32
  for (const OpInput& in : c.inputs)
    if (in.type.dtype == DType::F32 && !in.stays_f32) return true;
  return false;
}

OpCase in_bf16(OpCase c) {
  for (OpInput& in : c.inputs)
    if (in.type.dtype == DType::F32 && !in.stays_f32)
      in.type.dtype = DType::BF16;
  c.name += "/bf16";
  c.tolerance = 2e-2;
  c.differentiable = false;
  return c;
}

std::unique_ptr<Graph> build_graph(const OpCase& c) {
  std::string name = c.name;
  for (char& ch : name)
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  auto g = std::make_unique<Graph>(name);
  std::vector<Value> in;
  for (const OpInput& i : c.inputs)
    in.push_back(g->add_arg(fmt::format("x{}", in.size()), i.type));
  Builder b(*g);
  g->set_outputs(c.build(b, in));
  return g;
}

Tensor random_tensor(const OpInput& in, uint64_t seed) {
  Tensor t = Tensor::zeros(in.type);
  size_t n = t.data.size();
  if (!in.values.empty()) {
    MOEC_CHECK(in.values.size() == n);
    t.data = in.values;
    return t;
  }
  auto word = [&](size_t i) { return random_word(0x5eed, seed, i64(i)); };
  if (is_float(in.type.dtype)) {
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t(0));
    for (size_t i = n; i > 1; --i) std::swap(order[i - 1], order[word(i) % i]);
    // Inputs of different seeds have different grids.
    double offset = std::fmod(0.3 + 0.17 * double(seed), 1.0);
    for (size_t i = 0; i < n; ++i)
      t.data[i] =
          in.low + (in.high - in.low) * (double(order[i]) + offset) / double(n);
  } else {
    auto values = uint32_t(in.high - in.low) + 1;
    for (size_t i = 0; i < n; ++i) t.data[i] = in.low + word(i) % values;
  }
  round_to_dtype(t);
  return t;
}

std::vector<Tensor> random_inputs(const OpCase& c, uint64_t seed) {
  std::vector<Tensor> in;
  for (const OpInput& i : c.inputs)
    in.push_back(random_tensor(i, seed * 16 + in.size()));
  return in;
}

std::string difference(const Tensor& got, const Tensor& want,
                       double tolerance) {
  if (got.type != want.type)
    return fmt::format("type {}, not {}", to_string(got.type),
                       to_string(want.type));
  bool exact = !is_float(want.type.dtype);
  double scale = 1, worst = 0;
  for (double x : want.data)
    if (std::isfinite(x)) scale = std::max(scale, std::abs(x));
  size_t at = 0;
  for (size_t i = 0; i < want.data.size(); ++i) {
    double x = got.data[i], y = want.data[i];
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    double d = std::abs(x - y) / scale;
    if (exact || !std::isfinite(d)) d = INFINITY;
    if (d > worst) {
      worst = d;
      at = i;
    }
  }
  if (worst <= tolerance) return {};
  return fmt::format("{} element {}: {} instead of {}, {:.2g} of {:.3g}",
                     to_string(want.type), at, got.data[at], want.data[at],
                     worst, scale);
}

}  // namespace moec
