// Polynomials against double, at every feature level.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "codegen/cpu/lane_tile.h"
#include "codegen/cpu/pair_tile.h"
#include "tests/codegen/harness.h"
#include "tests/test.h"

namespace moec {
namespace {

struct Function {
  const char* name;
  V (Emit::*emit)(V);
  double (*exact)(double);
  double lo, hi;
  double ulps;      // allowed, of the result ...
  double absolute;  // ... or absolute, whichever is larger
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu(double x) {
  return 0.5 * x *
         (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double softplus(double x) {
  return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
}
double rsqrt(double x) { return 1 / std::sqrt(x); }
double silu(double x) { return x * sigmoid(x); }
double silu_slope(double x) { return sigmoid(x) * (1 + x * sigmoid(-x)); }
double gelu_slope(double x) {
  double c = std::sqrt(2 / M_PI);
  double t = std::tanh(c * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
}
double round_even(double x) { return std::nearbyint(x); }

const Function kFunctions[] = {
    {"exp", &Emit::exp, std::exp, -86, 88.7, 2, 0},
    {"exp_neg", &Emit::exp_neg, std::exp, -86, 0, 2, 0},
    {"exp2", &Emit::exp2, std::exp2, -124, 127.9, 2, 0},
    {"expm1", &Emit::expm1, std::expm1, -30, 80, 3, 0},
    {"log", &Emit::log, std::log, 1e-37, 1e37, 2, 0},
    {"log near 1", &Emit::log, std::log, 0.5, 2, 2, 0},
    {"log1p", &Emit::log1p, std::log1p, -0.9, 100, 4, 0},
    {"tanh", &Emit::tanh, std::tanh, -12, 12, 5, 0},
    {"erf", &Emit::erf, std::erf, -6, 6, 8, 0},
    {"sigmoid", &Emit::sigmoid, sigmoid, -80, 80, 3, 0},
    {"silu", &Emit::silu, silu, -50, 50, 4, 0},
    {"silu_slope", &Emit::silu_slope, silu_slope, -90, 90, 4, 2e-7},
    {"gelu", &Emit::gelu, gelu, -10, 10, 8, 3e-7},
    {"gelu_slope", &Emit::gelu_slope, gelu_slope, -20, 20, 4, 3e-7},
    {"softplus", &Emit::softplus, softplus, -40, 90, 4, 0},
    {"sin", &Emit::sin, std::sin, -1000, 1000, 3, 1e-7},
    {"cos", &Emit::cos, std::cos, -1000, 1000, 3, 1e-7},
    {"sin far", &Emit::sin, std::sin, -60000, 60000, 3, 1.2e-6},
    {"rsqrt", &Emit::rsqrt, rsqrt, 1e-6, 1e6, 2, 0},
    {"floor", &Emit::floor, std::floor, -1e7, 1e7, 0, 0},
    {"ceil", &Emit::ceil, std::ceil, -50, 50, 0, 0},
    {"round_even", &Emit::round_even, round_even, -50, 50, 0, 0},
    {"sqrt", &Emit::sqrt, std::sqrt, 0, 1e6, 0.51, 0},
};

constexpr int kCount = 1 << 14;

void map(const Target& t, V (Emit::*f)(V), std::vector<float>& in,
         std::vector<float>& out) {
  run_kernel(t,
             [&](Emit& e) {
               V src = e.buffer(0), dst = e.buffer(1);
               e.loop(e.i(0), e.i(int64_t(in.size())), e.lanes(), [&](V k) {
                 V x = e.vload(DType::F32, e.at(src, k));
                 e.vstore(DType::F32, (e.*f)(x), e.at(dst, k));
               });
             },
             {in.data(), out.data()});
}

TEST_CASE("polynomials agree with double") {
  for (const Target& t : test_targets()) {
    for (const Function& f : kFunctions) {
      CAPTURE(t.level);
      CAPTURE(f.name);
      std::vector<float> in(kCount), out(kCount);
      for (int i = 0; i < kCount; ++i) {
        double u = double(i) / (kCount - 1);
        // large positive ranges are walked geometrically
        in[i] = float(f.lo > 0 && f.hi / f.lo > 1e3
                          ? f.lo * std::pow(f.hi / f.lo, u)
                          : f.lo + (f.hi - f.lo) * u);
      }
      map(t, f.emit, in, out);
      double worst = 0;
      float at = 0;
      for (int i = 0; i < kCount; ++i) {
        double want = f.exact(double(in[i]));
        double ulp =
            std::ldexp(1.0, std::max(std::ilogb(float(want)), -126) - 23);
        if (want == 0) ulp = 1e-45;
        double allowed = std::max(f.ulps * ulp, f.absolute);
        double ratio =
            allowed ? std::fabs(out[i] - want) / allowed : out[i] != want;
        if (!(ratio <= worst)) worst = ratio, at = in[i];
      }
      CAPTURE(at);
      CHECK(worst <= 1.0);
    }
  }
}

TEST_CASE("special values") {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> in{0, -0.f, inf, -inf, nan, 1e-40f, 200, -200,
                        0, 0,    0,   0,    0,   0,      0,   0};
  std::vector<float> out(16);
  for (const Target& t : test_targets()) {
    CAPTURE(t.level);
    map(t, &Emit::exp, in, out);
    CHECK(out[0] == 1);
    CHECK(out[2] == inf);
    CHECK(out[3] == 0);
    CHECK(std::isnan(out[4]));
    CHECK(out[6] == inf);
    CHECK(out[7] == 0);
    map(t, &Emit::exp_neg, in, out);
    CHECK(out[3] == 0);
    CHECK(std::isnan(out[4]));
    map(t, &Emit::log, in, out);
    CHECK(out[0] == -inf);
    CHECK(out[2] == inf);
    CHECK(std::isnan(out[3]));
    CHECK(std::isnan(out[4]));
    CHECK(out[5] == doctest::Approx(std::log(1e-40)).epsilon(1e-3));
    map(t, &Emit::log1p, in, out);
    CHECK(out[0] == 0);
    CHECK(out[2] == inf);
    map(t, &Emit::tanh, in, out);
    CHECK(out[2] == doctest::Approx(1));
    CHECK(out[3] == doctest::Approx(-1));
    CHECK(std::isnan(out[4]));
    map(t, &Emit::sigmoid, in, out);
    CHECK(out[2] == 1);
    CHECK(out[3] < 1e-37f);
    map(t, &Emit::softplus, in, out);
    CHECK(out[2] == inf);
    CHECK(out[3] == 0);
    CHECK(std::isnan(out[4]));
    map(t, &Emit::floor, in, out);
    CHECK(std::isnan(out[4]));
    CHECK(out[2] == inf);
  }
}

TEST_CASE("powers of two of the fused kernels") {
  struct Case {
    V (*f)(Emit&, V);
    double error;
  };
  for (const Target& t : test_targets())
    for (auto [f, error] : {Case{exp2_fast, 3e-7}, Case{exp2_coarse, 8e-5}}) {
      CAPTURE(t.level);
      std::vector<float> in, out(4096);
      for (size_t k = 0; k < out.size(); ++k)
        in.push_back(float(k) * 0.0613f - 125.5f);
      in[0] = -INFINITY, in[1] = -1e30f, in[2] = -200, in[3] = NAN;
      run_kernel(t,
                 [&](Emit& e) {
                   e.loop(e.i(0), e.i(int64_t(in.size())), e.lanes(), [&](V k) {
                     V x = e.vload(DType::F32, e.at(e.buffer(0), k));
                     e.vstore(DType::F32, f(e, x), e.at(e.buffer(1), k));
                   });
                 },
                 {in.data(), out.data()});
      for (int k = 0; k < 3; ++k) CHECK(out[k] == 0);
      CHECK(std::isnan(out[3]));
      double worst = 0;
      for (size_t k = 4; k < out.size(); ++k)
        worst = std::max(
            worst, std::fabs(double(out[k]) / std::exp2(double(in[k])) - 1));
      CHECK(worst < error);
    }
}

TEST_CASE("powers of two as bf16 pairs") {
  for (const Target& t : test_targets()) {
    if (!t.vbmi) continue;
    CAPTURE(t.level);
    // a large argument less an equal one
    for (float large : {1e3f, 1e6f, 3e7f, 1e9f, 1e20f}) {
      std::vector<float> x(32, large);
      std::vector<uint16_t> y(32);
      run_kernel(t,
                 [&](Emit& e) {
                   V origin = power_origin(e, e.splat(e.f(-large)));
                   V at = e.fma(e.vload(DType::F32, e.buffer(0)),
                                e.f(kPowerSteps), origin);
                   e.store_raw(power_pair(e, at, at), e.buffer(1), 2);
                 },
                 {x.data(), y.data()});
      CHECK(bf16_to_f32(y[0]) <= 1.01f);
      if (large < 1e8f) CHECK(bf16_to_f32(y[0]) > (large < 1e5f ? 0.99 : 5e-3));
    }
    const double a = 0.37, b = -3;
    std::vector<float> in;
    std::vector<uint16_t> out(16384);
    for (size_t k = 0; k < out.size(); ++k)
      in.push_back(float((3 - double(k % 8191) * 0.01517) / a));
    in[0] = -INFINITY, in[1] = -1e30f, in[2] = -600, in[3] = NAN;
    run_kernel(t,
               [&](Emit& e) {
                 V factor = e.f(a * kPowerSteps);
                 V origin = power_origin(e, e.splat(e.f(b)));
                 e.loop(e.i(0), e.i(int64_t(in.size())), 32, [&](V k) {
                   auto argument = [&](int from) {
                     V x =
                         e.vload(DType::F32, e.at(e.at(e.buffer(0), k), from));
                     return e.fma(x, factor, origin);
                   };
                   V pairs = power_pair(e, argument(0), argument(16));
                   e.store_raw(pairs, e.at(e.buffer(1), k, 2), 2);
                 });
               },
               {in.data(), out.data()});
    double worst = 0, mean = 0, square = 0;
    for (size_t k = 0; k < out.size(); ++k) {
      // pairs hold an element of either half
      size_t in_row = k % 32 / 2 + k % 2 * 16, at = k / 32 * 32 + in_row;
      float y = bf16_to_f32(out[k]);
      if (at < 4) {
        CHECK(y == 0);
        continue;
      }
      double error = double(y) / std::exp2(a * double(in[at]) + b) - 1;
      worst = std::max(worst, std::fabs(error));
      mean += error / double(out.size());
      square += error * error / double(out.size());
    }
    CHECK(worst < 6.4e-3);
    CHECK(std::fabs(mean) < 1e-4);
    CHECK(std::sqrt(square) < 1.9e-3);
  }
}

}  // namespace
}  // namespace moec
