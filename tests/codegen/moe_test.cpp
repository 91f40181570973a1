// Expert kernels against a double reference, at every feature level.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

#include "codegen/cpu/moe.h"
#include "tests/codegen/harness.h"
#include "tests/codegen/kernel_bench.h"
#include "tests/test.h"

namespace moec {
namespace {

using B = MoeBuffer;

struct Problem {
  MoeSpec s;
  std::map<B, Floats> f;
  std::map<B, std::vector<uint16_t, Aligned<uint16_t>>> half;  // bf16 of f
  std::map<B, std::vector<std::byte, Aligned<std::byte>>> work;
  std::vector<int32_t> offsets, perm, inverse;
  std::vector<int> expert;  // of each choice; -1: dropped

  Problem(const MoeSpec& spec, double drop) : s(spec) {
    std::mt19937 gen(5);
    const int64_t e = s.experts, n = s.hidden, d = s.dim, slots = s.slots();
    f[B::X] = random_floats(s.tokens * d, 1);
    f[B::Dy] = random_floats(s.tokens * d, 2);
    f[B::Weights] = random_floats(slots, 3);
    const float scale = 1 / std::sqrt(float(d));
    for (B b : {B::Up, B::Gate, B::Down})
      f[b] = random_floats(e * n * d, 4 + unsigned(b), scale);
    for (B b : {B::BiasUp, B::BiasGate})
      f[b] = random_floats(e * n, 4 + unsigned(b));
    f[B::BiasDown] = random_floats(e * d, 9);
    auto unset = [&](B b, int64_t count) { f[b].assign(count, NAN); };
    auto room = [&](B b, int64_t bytes) {
      work[b].assign(bytes, std::byte(0xff));  // NaN
    };
    room(B::Saved, moe_saved_bytes(s));
    room(B::DHidden, moe_hidden_grad_bytes(s));
    room(B::Activated, moe_activated_bytes(s));
    room(B::Rows, slots * d * 4), room(B::SlotWeights, slots * 4);
    if (s.bf16)
      for (B b : {B::PackedUp, B::PackedGate, B::PackedDown})
        room(b, moe_packed_bytes(s, b));
    unset(B::Y, s.tokens * d), unset(B::Dx, s.tokens * d);
    unset(B::DWeights, slots);
    for (B b : {B::DUp, B::DGate, B::DDown}) unset(b, e * n * d);
    for (B b : {B::DBiasUp, B::DBiasGate}) unset(b, e * n);
    unset(B::DBiasDown, e * d);
    if (s.bf16)
      for (auto& [b, values] : f) {
        if (b == B::Weights || b == B::DWeights) continue;
        for (float& v : values) {
          half[b].push_back(f32_to_bf16(v));
          v = bf16_to_f32(half[b].back());
        }
      }

    expert.assign(slots, -1);
    for (int64_t t = 0; t < s.tokens; ++t) {
      std::vector<int> order(e);
      for (int i = 0; i < e; ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), gen);
      for (int64_t j = 0; j < s.top_k; ++j)
        if (std::generate_canonical<double, 32>(gen) >= drop)
          expert[t * s.top_k + j] = order[j];
    }
    inverse.assign(slots, -1), perm.assign(slots, -1);
    offsets = {0};
    int32_t slot = 0;
    for (int i = 0; i < e; ++i) {
      for (int64_t c = 0; c < slots; ++c)
        if (expert[c] == i) perm[slot] = int32_t(c), inverse[c] = slot++;
      offsets.push_back(slot);
    }
  }

  std::vector<void*> pointers(const MoeLaunch& l) {
    std::vector<void*> p;
    for (B b : l.buffers) {
      if (b == B::Offsets)
        p.push_back(offsets.data());
      else if (b == B::Perm)
        p.push_back(perm.data());
      else if (b == B::Inverse)
        p.push_back(inverse.data());
      else if (work.contains(b))
        p.push_back(work.at(b).data());
      else if (half.contains(b))
        p.push_back(half.at(b).data());
      else
        p.push_back(f.at(b).data());
    }
    return p;
  }

  // Results, and operands as the kernels see them.
  void widen() {
    for (auto& [b, values] : half)
      for (size_t i = 0; i < values.size(); ++i)
        f[b][i] = bf16_to_f32(values[i]);
  }
};

struct Value1 {
  double value, by_gate, by_up;
};

Value1 activation(MoeActivation a, double g, double u) {
  auto silu = [](double x) {
    double s = 1 / (1 + std::exp(-x));
    return std::pair(x * s, s * (1 + x * (1 - s)));
  };
  auto gelu = [](double x) {
    const double c = std::sqrt(2 / M_PI);
    double t = std::tanh(c * (x + 0.044715 * x * x * x));
    return std::pair(
        0.5 * x * (1 + t),
        0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x));
  };
  double r = std::max(g, 0.0);
  switch (a) {
    case MoeActivation::Gelu: return {gelu(u).first, 0, gelu(u).second};
    case MoeActivation::Relu: return {std::max(u, 0.0), 0, double(u > 0)};
    case MoeActivation::Silu: return {silu(u).first, 0, silu(u).second};
    case MoeActivation::Swiglu:
      return {silu(g).first * u, silu(g).second * u, silu(g).first};
    case MoeActivation::Geglu:
      return {gelu(g).first * u, gelu(g).second * u, gelu(g).first};
    case MoeActivation::Relu2Glu: return {r * r * u, 2 * r * u, r * r};
    case MoeActivation::GeluBilinear:
      return {gelu(g * u).first, gelu(g * u).second * u,
              gelu(g * u).second * g};
  }
  return {};
}

using Result = std::map<B, std::vector<double>>;

Result reference(const Problem& p) {
  const MoeSpec& s = p.s;
  const int64_t n = s.hidden, d = s.dim, k = s.top_k;
  const bool gated = is_gated(s.activation);
  Result r;
  for (B b : {B::Y, B::Dx, B::DWeights, B::DUp, B::DGate, B::DDown, B::DBiasUp,
              B::DBiasGate, B::DBiasDown})
    r[b].assign(p.f.at(b).size(), 0);
  for (int64_t c = 0; c < s.slots(); ++c) {
    const int64_t e = p.expert[c], t = c / k;
    if (e < 0) continue;
    const float *x = &p.f.at(B::X)[t * d], *dy = &p.f.at(B::Dy)[t * d];
    const float *up = &p.f.at(B::Up)[e * n * d],
                *gate = &p.f.at(B::Gate)[e * n * d],
                *down = &p.f.at(B::Down)[e * n * d];
    const double w = p.f.at(B::Weights)[c];
    std::vector<double> y(d);
    if (s.bias)
      for (int64_t i = 0; i < d; ++i) y[i] = p.f.at(B::BiasDown)[e * d + i];
    for (int64_t h = 0; h < n; ++h) {
      double u = s.bias ? p.f.at(B::BiasUp)[e * n + h] : 0;
      double g = s.bias ? p.f.at(B::BiasGate)[e * n + h] : 0;
      double da = 0;
      for (int64_t i = 0; i < d; ++i) {
        u += double(x[i]) * up[h * d + i];
        g += double(x[i]) * gate[h * d + i];
        da += double(dy[i]) * down[i * n + h];
      }
      Value1 a = activation(s.activation, g, u);
      double du = w * da * a.by_up, dg = w * da * a.by_gate;
      const int64_t row = e * n * d;
      for (int64_t i = 0; i < d; ++i) {
        y[i] += a.value * down[i * n + h];
        r[B::DDown][row + i * n + h] += w * a.value * dy[i];
        r[B::DUp][row + h * d + i] += du * x[i];
        r[B::Dx][t * d + i] += du * up[h * d + i];
        if (!gated) continue;
        r[B::DGate][row + h * d + i] += dg * x[i];
        r[B::Dx][t * d + i] += dg * gate[h * d + i];
      }
      r[B::DBiasUp][e * n + h] += du, r[B::DBiasGate][e * n + h] += dg;
    }
    for (int64_t i = 0; i < d; ++i) {
      r[B::Y][t * d + i] += w * y[i];
      r[B::DWeights][c] += y[i] * dy[i];
      r[B::DBiasDown][e * d + i] += w * dy[i];
    }
  }
  return r;
}

MoeSpec make_spec(int64_t tokens, int64_t dim, int64_t hidden, int64_t experts,
                  int64_t top_k, MoeActivation a, bool bias) {
  return {.tokens = tokens,
          .top_k = top_k,
          .experts = experts,
          .dim = dim,
          .hidden = hidden,
          .activation = a,
          .bias = bias};
}

void run(OneThread& thread, KernelLibrary& lib, Problem& p,
         const std::vector<MoeLaunch>& launches) {
  for (const MoeLaunch& l : launches)
    thread.run(lib.get(l.spec), l.spec, p.pointers(l));
}

void check(const Target& t, const MoeSpec& s, double drop) {
  KernelLibrary lib(t, "");
  Problem p(s, drop);
  OneThread thread;
  auto forward = moe_forward(s, t);
  CAPTURE(t.level);
  CAPTURE(forward[0].spec.key);
  run(thread, lib, p, forward);
  run(thread, lib, p, moe_backward(s, t));
  p.widen();
  Result r = reference(p);
  std::vector<B> all = {B::Y, B::Dx, B::DWeights, B::DUp, B::DDown};
  if (is_gated(s.activation)) all.push_back(B::DGate);
  if (s.bias) all.push_back(B::DBiasUp), all.push_back(B::DBiasDown);
  if (s.bias && is_gated(s.activation)) all.push_back(B::DBiasGate);
  for (B b : all) {
    CAPTURE(int(b));
    // of single tokens' rows, which cancel, far more is left of the rounding
    const double bf16 = b == B::DWeights ? 3e-2 : 1e-2;
    CHECK(relative_error(r[b], p.f[b]) < (s.bf16 ? bf16 : 5e-6));
  }
}

TEST_CASE("experts agree with the definition") {
  for (const Target& t : test_targets()) {
    check(t, make_spec(96, 32, 64, 4, 2, MoeActivation::Swiglu, false), 0);
    // odd widths, dropped choices, experts without a slot
    check(t, make_spec(57, 19, 75, 5, 2, MoeActivation::Gelu, true), 0.4);
    check(t, make_spec(3, 40, 5, 9, 3, MoeActivation::GeluBilinear, true), 0.1);
    check(t, make_spec(61, 9, 131, 2, 1, MoeActivation::Relu2Glu, true), 0);
  }
}

// The kernels on pairs, which `form` asks for.
void check_pairs(const Target& t, bool MoeSpec::* form) {
  auto run = [&](MoeSpec s, double drop) {
    s.*form = true;
    check(t, s, drop);
  };
  run(make_spec(96, 32, 64, 4, 2, MoeActivation::Swiglu, false), 0);
  run(make_spec(700, 160, 96, 3, 2, MoeActivation::Gelu, false), 0.1);
  run(make_spec(57, 19, 75, 5, 2, MoeActivation::Gelu, true), 0.4);
  run(make_spec(3, 40, 5, 9, 3, MoeActivation::GeluBilinear, true), 0.1);
  run(make_spec(61, 9, 131, 2, 1, MoeActivation::Relu2Glu, true), 0);
  // more slots than are gathered at a time
  run(make_spec(1100, 5, 4, 1, 1, MoeActivation::Silu, true), 0);
}

TEST_CASE("experts on bf16 agree with the definition") {
  for (const Target& t : test_targets()) {
    if (!moe_runs_bf16(t)) continue;
    check_pairs(t, &MoeSpec::bf16);
  }
  const Target native = make_target("native");
  if (!moe_runs_bf16(native)) return;
  for (int a = 0; a <= int(MoeActivation::GeluBilinear); ++a) {
    MoeSpec s = make_spec(40, 24, 20, 3, 2, MoeActivation(a), false);
    s.bf16 = true;
    check(native, s, 0.1);
  }
}

TEST_CASE("experts on split f32 agree with the definition") {
  const Target t = make_target("native");
  if (!t.amx_bf16) return;
  check_pairs(t, &MoeSpec::split);
  CHECK(moe_splits(make_spec(96, 64, 64, 4, 2, MoeActivation::Relu, false), t));
  CHECK(!moe_splits(make_spec(96, 64, 64, 4, 2, MoeActivation::Relu, false),
                    make_target("native-noamx")));
}

TEST_CASE("every activation and its derivative") {
  const Target t = make_target("native");
  for (MoeActivation a :
       {MoeActivation::Gelu, MoeActivation::Relu, MoeActivation::Silu,
        MoeActivation::Swiglu, MoeActivation::Geglu, MoeActivation::Relu2Glu,
        MoeActivation::GeluBilinear})
    check(t, make_spec(40, 24, 20, 3, 2, a, false), 0.1);
}

TEST_CASE("an expert with more slots than are gathered at a time") {
  check(make_target("native"),
        make_spec(600, 5, 4, 1, 1, MoeActivation::Silu, true), 0);
}

void bench(KernelLibrary& lib, const MoeSpec& s) {
  Problem p(s, 0);
  auto forward = moe_forward(s, lib.target());
  auto backward = moe_backward(s, lib.target());
  OneThread thread;
  run(thread, lib, p, forward), run(thread, lib, p, backward);
  double tf = 1e9, tb = 1e9, peak = measure_flops(lib, s.bf16);
  std::vector<double> parts(forward.size() + backward.size(), 1e9);
  for (int r = 0; r < 15; ++r) {
    double start = thread_seconds(), last = start;
    int i = 0;
    auto timed = [&](const std::vector<MoeLaunch>& launches) {
      for (const MoeLaunch& l : launches) {
        thread.run(lib.get(l.spec), l.spec, p.pointers(l));
        double now = thread_seconds();
        parts[i] = std::min(parts[i], now - last), last = now, ++i;
      }
    };
    timed(forward);
    double middle = thread_seconds();
    timed(backward);
    tf = std::min(tf, middle - start);
    tb = std::min(tb, thread_seconds() - middle);
    peak = std::max(peak, measure_flops(lib, s.bf16));
  }
  double flops = 6.0 * double(s.slots()) * double(s.dim * s.hidden);
  auto share = [&](double f, double t) { return 100 * f / t / peak; };
  fmt::print(
      "{} ({},{},{},{},{}): fwd {:.2f} ms {:.1f} %  bwd {:.2f} ms {:.1f} "
      "%  both {:.1f} % of {:.1f}; parts",
      s.bf16 ? "bf16" : "f32", s.tokens, s.dim, s.hidden, s.experts, s.top_k,
      tf * 1e3, share(flops, tf), tb * 1e3, share(2 * flops, tb),
      share(3 * flops, tf + tb), peak / 1e9);
  for (double t : parts) fmt::print(" {:.2f}", t * 1e3);
  fmt::print("\n");
}

// MOEC_BENCH=1 build/release/test_codegen_moe -tc=*rate*
TEST_CASE("expert rate") {
  if (!std::getenv("MOEC_BENCH")) return;
  KernelLibrary lib(host_target(), "");
  for (bool bf16 : {false, true}) {
    if (bf16 && !moe_runs_bf16(lib.target())) continue;
    for (auto [t, d, n, e] : {std::array<int64_t, 4>{2048, 256, 512, 8},
                              {2048, 256, 512, 32},
                              {256, 256, 512, 8},
                              {2048, 512, 1024, 8}}) {
      MoeSpec s = make_spec(t, d, n, e, 2, MoeActivation::Swiglu, false);
      s.bf16 = bf16;
      bench(lib, s);
    }
  }
}

}  // namespace
}  // namespace moec
