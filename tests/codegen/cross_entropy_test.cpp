// The fused loss against a double reference, at every feature level.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <map>

#include "codegen/cpu/cross_entropy.h"
#include "tests/codegen/harness.h"
#include "tests/codegen/kernel_bench.h"
#include "tests/test.h"

namespace moec {
namespace {

using B = CrossEntropyBuffer;

struct Problem {
  CrossEntropySpec s;
  std::map<B, Floats> f;
  std::map<B, std::vector<uint16_t>>
      half;  // what is bf16, as the kernel has it
  std::vector<int32_t> targets;

  Problem(const CrossEntropySpec& spec, const CrossEntropyPlan& plan)
      : s(spec) {
    f[B::X] = random_floats(s.tokens * s.dim, 1);
    f[B::W] = random_floats(s.vocab * s.dim, 2, 1 / std::sqrt(float(s.dim)));
    f[B::Bias] = random_floats(s.vocab, 3);
    f[B::Dloss] = random_floats(s.tokens, 4);
    auto unset = [&](B b, int64_t n) { f[b].assign(size_t(n), NAN); };
    unset(B::Loss, s.tokens), unset(B::Lse, s.tokens);
    unset(B::Dx, s.tokens * s.dim), unset(B::Dw, s.vocab * s.dim);
    unset(B::Dbias, s.vocab);
    for (auto& [b, bytes] : plan.workspaces) unset(b, (bytes + 3) / 4);
    if (s.bf16)
      for (B b : {B::X, B::W, B::Bias, B::Dx, B::Dw, B::Dbias})
        for (float& x : f[b]) {
          half[b].push_back(f32_to_bf16(x));
          x = bf16_to_f32(half[b].back());
        }
    std::mt19937 gen(5);
    for (int64_t t = 0; t < s.tokens; ++t)
      targets.push_back(t % 7 == 3 ? -1 : int32_t(gen() % unsigned(s.vocab)));
  }

  void run(OneThread& thread, KernelLibrary& lib,
           const CrossEntropyPlan& plan) {
    for (const CrossEntropyLaunch& l : plan.launches) {
      std::vector<void*> p;
      for (size_t i = 0; i < l.buffers.size(); ++i) {
        const B b = l.buffers[i];
        void* base = b == B::Targets    ? static_cast<void*>(targets.data())
                     : half.contains(b) ? static_cast<void*>(half.at(b).data())
                                        : static_cast<void*>(f.at(b).data());
        p.push_back(static_cast<std::byte*>(base) + l.offsets[i]);
      }
      thread.run(lib.get(l.spec), l.spec, p);
    }
    for (auto& [b, values] : half)
      for (size_t i = 0; i < values.size(); ++i)
        f.at(b)[i] = bf16_to_f32(values[i]);
  }
};

using Result = std::map<B, std::vector<double>>;

Result reference(const Problem& p) {
  const CrossEntropySpec& s = p.s;
  Result r;
  for (B b : {B::Loss, B::Lse, B::Dx, B::Dw, B::Dbias})
    r[b].assign(p.f.at(b).size(), 0);
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::vector<double> z(size_t(s.vocab));
    double best = -INFINITY, sum = 0;
    for (int64_t v = 0; v < s.vocab; ++v) {
      z[v] = s.bias ? p.f.at(B::Bias)[v] : 0;
      for (int64_t c = 0; c < s.dim; ++c)
        z[v] +=
            double(p.f.at(B::X)[t * s.dim + c]) * p.f.at(B::W)[v * s.dim + c];
      best = std::max(best, z[v]);
    }
    for (double x : z) sum += std::exp(x - best);
    double lse = r[B::Lse][t] = best + std::log(sum);
    const int32_t target = p.targets[t];
    if (target < 0) continue;
    r[B::Loss][t] = lse - z[target];
    for (int64_t v = 0; v < s.vocab; ++v) {
      double g = (std::exp(z[v] - lse) - (v == target)) * p.f.at(B::Dloss)[t];
      r[B::Dbias][v] += g;
      for (int64_t c = 0; c < s.dim; ++c) {
        r[B::Dx][t * s.dim + c] += g * p.f.at(B::W)[v * s.dim + c];
        r[B::Dw][v * s.dim + c] += g * p.f.at(B::X)[t * s.dim + c];
      }
    }
  }
  return r;
}

void check(const Target& t, CrossEntropySpec s) {
  KernelLibrary lib(t, "");
  OneThread thread;
  CAPTURE(t.level);
  CAPTURE(s.vocab);
  Result r;  // of any mode
  for (auto mode : {CrossEntropyMode::Loss, CrossEntropyMode::Grad,
                    CrossEntropyMode::Both}) {
    CAPTURE(int(mode));
    s.mode = mode;
    CrossEntropyPlan plan = cross_entropy_plan(s, t);
    Problem p(s, plan);
    if (r.empty()) r = reference(p);
    if (mode == CrossEntropyMode::Grad)
      p.f[B::Lse].assign(r[B::Lse].begin(), r[B::Lse].end());
    p.run(thread, lib, plan);
    std::vector<B> all;
    if (mode != CrossEntropyMode::Grad) all = {B::Loss, B::Lse};
    if (mode != CrossEntropyMode::Loss) all.insert(all.end(), {B::Dx, B::Dw});
    if (mode != CrossEntropyMode::Loss && s.bias) all.push_back(B::Dbias);
    for (B b : all) {
      CAPTURE(int(b));
      // dlogits are rounded twice, the results once
      const bool statistic = b == B::Loss || b == B::Lse;
      CHECK(relative_error(r[b], p.f[b]) <
            (!s.bf16 || statistic ? 5e-6 : 4e-3));
    }
  }
}

TEST_CASE("the fused loss agrees with the definition") {
  for (const Target& t : test_targets()) {
    check(t, {.tokens = 64, .vocab = 128, .dim = 32});
    check(t, {.tokens = 45, .vocab = 65, .dim = 19, .bias = true});
    check(t, {.tokens = 1, .vocab = 5, .dim = 140, .bias = true});
  }
}

TEST_CASE("the fused loss in bf16 agrees with the definition") {
  for (const Target& t : test_targets()) {
    check(t, {.tokens = 64, .vocab = 128, .dim = 32, .bf16 = true});
    check(t,
          {.tokens = 45, .vocab = 65, .dim = 19, .bias = true, .bf16 = true});
    check(t, {.tokens = 1, .vocab = 5, .dim = 140, .bias = true, .bf16 = true});
  }
  // several chunks and blocks
  CrossEntropySpec s{.tokens = 300, .vocab = 33001, .dim = 8, .bias = true};
  s.bf16 = true;
  const Target t = make_target("native");
  REQUIRE(cross_entropy_chunk(s, t) == 160);
  check(t, s);
}

TEST_CASE("more tokens than a chunk, more rows than a block") {
  const Target t = make_target("native");
  CrossEntropySpec s{.tokens = 300, .vocab = 30001, .dim = 8, .bias = true};
  REQUIRE(!cross_entropy_in_pairs(s, t));
  REQUIRE(cross_entropy_chunk(s, t) == 192);
  check(t, s);
}

TEST_CASE("the fused loss on f32 in planes agrees with the definition") {
  const Target t = make_target("native");
  if (!t.amx_bf16) return;
  for (CrossEntropySpec s : std::vector<CrossEntropySpec>{
           {.tokens = 64, .vocab = 256, .dim = 64},
           {.tokens = 45, .vocab = 135, .dim = 67, .bias = true},
           {.tokens = 1, .vocab = 129, .dim = 64, .bias = true},
           // several parts of the channels, the last one shorter
           {.tokens = 70, .vocab = 300, .dim = 1100},
           // several tasks of dX
           {.tokens = 330, .vocab = 200, .dim = 64}}) {
    REQUIRE(cross_entropy_in_pairs(s, t));
    check(t, s);
  }
  // several chunks and blocks
  CrossEntropySpec s{.tokens = 300, .vocab = 14001, .dim = 65, .bias = true};
  REQUIRE(cross_entropy_chunk(s, t) == 160);
  check(t, s);
}

// Tasks may run in any order, each on one thread's scratch.
TEST_CASE("the order of tasks does not change the fused loss") {
  const Target t = make_target("native");
  KernelLibrary lib(t, "");
  for (bool bf16 : {false, true}) {
    CrossEntropySpec s{.tokens = 300, .vocab = 515, .dim = 600, .bias = true};
    s.bf16 = bf16;
    CrossEntropyPlan plan = cross_entropy_plan(s, t);
    OneThread forward, backward{.reversed = true};
    Problem a(s, plan), b(s, plan);
    a.run(forward, lib, plan), b.run(backward, lib, plan);
    for (B r : {B::Loss, B::Lse, B::Dx, B::Dw, B::Dbias}) {
      CAPTURE(int(r));
      CHECK(a.f.at(r) == b.f.at(r));
    }
  }
}

void bench(KernelLibrary& lib, CrossEntropySpec s) {
  CrossEntropyPlan plan = cross_entropy_plan(s, lib.target());
  Problem p(s, plan);
  OneThread thread;
  p.run(thread, lib, plan);
  double best = 1e9, peak = 0;
  for (int r = 0; r < 5; ++r) {
    double start = thread_seconds();
    p.run(thread, lib, plan);
    best = std::min(best, thread_seconds() - start);
    peak = std::max(peak, measure_flops(lib, false));
  }
  double flops = 6.0 * double(s.tokens) * double(s.vocab * s.dim);
  fmt::print("T{} V{} d{} chunk {}: {:.1f} ms {:.1f} % of {:.1f} GFLOP/s\n",
             s.tokens, s.vocab, s.dim, cross_entropy_chunk(s, lib.target()),
             best * 1e3, 100 * flops / best / peak, peak / 1e9);
}

// MOEC_BENCH=1 build/release/test_codegen_cross_entropy -tc=*rate*
TEST_CASE("fused loss rate") {
  if (!std::getenv("MOEC_BENCH")) return;
  KernelLibrary lib(host_target(), "");
  bench(lib, {.tokens = 2048, .vocab = 8192, .dim = 384});
  bench(lib, {.tokens = 4096, .vocab = 65, .dim = 128});
  bench(lib, {.tokens = 512, .vocab = 50304, .dim = 576});
}

}  // namespace
}  // namespace moec
