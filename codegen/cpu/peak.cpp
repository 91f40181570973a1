#include "codegen/cpu/peak.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/jit.h"
#include "codegen/cpu/target.h"
#include "support/error.h"
#include "support/thread_pool.h"

namespace moec {

namespace {

// A slice of half a millisecond: far above the clock's jitter.
constexpr int kSteps = 1 << 16;
constexpr int64_t kStreamBytes = 64 << 20;

// Enough chains to hide the latency (6 cycles at 2 a cycle), few enough for
// the registers.
int chains(const Target& t) { return t.registers == 32 ? 24 : 12; }

KernelSpec fma_kernel(const Target& t, bool bf16) {
  return {.key = bf16 ? "peak bf16" : "peak f32",
          .emit =
              [n = chains(t), bf16](Emit& e) {
                // distinct starts: equal chains would be merged into one
                Vs acc;
                for (int c = 0; c < n; ++c)
                  acc.push_back(e.vload(DType::F32, e.at(e.buffer(0), c)));
                V x = e.vload(DType::F32, e.at(e.buffer(0), 1));
                V y = e.vload(DType::F32, e.at(e.buffer(0), 2));
                acc = e.loop(e.i(0), e.i(kSteps), 1, acc, [&](V, Vs a) {
                  for (V& v : a)
                    v = bf16 ? e.dpbf16(v, e.revector(x, Ty::I16),
                                        e.revector(y, Ty::I16))
                             : e.fma(x, y, v);
                  return a;
                });
                V sum = acc[0];
                for (int c = 1; c < n; ++c) sum = e.add(sum, acc[c]);
                e.vstore(DType::F32, sum, e.buffer(1));
              },
          .flops = (bf16 ? 4.0 : 2.0) * t.lanes * chains(t) * kSteps};
}

// Two by two accumulators, as in a matrix product; but the two operands of
// each stay in registers.
KernelSpec tile_kernel() {
  constexpr int kProducts = 4, kFlops = 2 * 16 * 16 * 32;
  return {.key = "peak bf16 tiles",
          .emit =
              [](Emit& e) {
                e.tile_config(std::vector<Emit::Tile>(8));
                e.tile_load(4, e.buffer(0), e.i(0));
                e.tile_load(5, e.buffer(0), e.i(0));
                e.loop(e.i(0), e.i(kSteps / 16), 1, [&](V) {
                  for (int c = 0; c < kProducts; ++c) e.tile_dpbf16(c, 4, 5);
                });
                e.tile_store(0, e.buffer(1), e.i(0));
                e.tile_release();
              },
          .flops = double(kFlops) * kProducts * (kSteps / 16)};
}

KernelSpec stream_kernel(const Target& t, bool copy) {
  return {.key = copy ? "stream copy" : "stream read",
          .emit =
              [copy](Emit& e) {
                const int L = e.lanes(), unroll = 4;
                V n = e.i(kStreamBytes / 4);
                Vs sums = e.loop(e.i(0), n, unroll * L,
                                 Vs(unroll, e.splat(e.f(0))), [&](V k, Vs s) {
                                   for (int u = 0; u < unroll; ++u) {
                                     V at = e.add(k, u * L);
                                     V v = e.vload_aligned(
                                         DType::F32, e.at(e.buffer(0), at));
                                     if (copy)
                                       e.vstore_aligned(DType::F32, v,
                                                        e.at(e.buffer(1), at));
                                     else
                                       s[u] = e.add(s[u], v);
                                   }
                                   return s;
                                 });
                V sum = e.add(e.add(sums[0], sums[1]), e.add(sums[2], sums[3]));
                e.vstore(DType::F32, sum, e.scratch());
              },
          .bytes = double(kStreamBytes) * (copy ? 2 : 1)};
}

// Best of rate(seconds a run took) over runs that add up to `seconds`.
template <class Rate>
double best_rate(KernelFn fn, std::byte* const* buffers, double seconds,
                 const Rate& rate) {
  alignas(64) std::byte scratch[64];
  double best = 0, spent = 0;
  for (int round = 0; round < 3 || spent < seconds; ++round) {
    double start = thread_seconds();
    fn(buffers, 0, scratch);
    double took = thread_seconds() - start;
    spent += took;
    if (took > 0) best = std::max(best, rate(took));
  }
  return best;
}

struct AlignedFree {
  void operator()(std::byte* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<std::byte, AlignedFree>;

Buffer zeros(int64_t bytes) {
  Buffer b(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
  std::fill(b.get(), b.get() + bytes, std::byte{0});
  return b;
}

}  // namespace

double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

double core_clock() {
  constexpr int kSteps = 4096, kLatency = 3;
  double best = 1e9;
  // an interrupt only ever makes a try longer
  for (int trial = 0; trial < 3; ++trial) {
    auto start = std::chrono::steady_clock::now();
    volatile uint64_t sink = 3;
    uint64_t x = sink;
    for (int k = 0; k < kSteps; ++k) x *= x;
    sink = x;
    std::chrono::duration<double> took =
        std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return kSteps * kLatency / best;
}

namespace {

KernelSpec peak_kernel(const Target& t, bool bf16) {
  return bf16 && t.amx_bf16 ? tile_kernel() : fma_kernel(t, bf16 && t.bf16_dot);
}

// Best of `rate(took)` over runs that add up to `seconds`.
template <class Rate>
double best_kernel_rate(KernelLibrary& lib, const KernelSpec& spec,
                        double seconds, const Rate& rate) {
  KernelFn fn = lib.get(spec);
  // all elements normal, and small enough never to overflow
  alignas(64) float in[64], out[16];
  for (int k = 0; k < 64; ++k) in[k] = 1e-3f * float(k + 1);
  std::byte* buffers[] = {reinterpret_cast<std::byte*>(in),
                          reinterpret_cast<std::byte*>(out)};
  return best_rate(fn, buffers, seconds, rate);
}

double kernel_flops(KernelLibrary& lib, const KernelSpec& spec,
                    double seconds) {
  return best_kernel_rate(lib, spec, seconds,
                          [&](double took) { return spec.flops / took; });
}

}  // namespace

double measure_flops(KernelLibrary& lib, bool bf16, double seconds) {
  return kernel_flops(lib, peak_kernel(lib.target(), bf16), seconds);
}

double measure_flops_per_cycle(KernelLibrary& lib, bool bf16) {
  const KernelSpec spec = peak_kernel(lib.target(), bf16);
  double before = core_clock();
  return best_kernel_rate(lib, spec, 0.005, [&](double took) {
    double after = core_clock();
    double clock = std::max(before, after);
    before = after;
    return spec.flops / took / clock;
  });
}

Peak measure_peak(KernelLibrary& lib, double seconds) {
  Peak p;
  const Target& t = lib.target();
  p.f32 = kernel_flops(lib, fma_kernel(t, false), seconds);
  if (t.bf16_dot) p.bf16_dot = kernel_flops(lib, fma_kernel(t, true), seconds);
  if (t.amx_bf16) p.bf16_tile = kernel_flops(lib, tile_kernel(), seconds);
  p.bf16 = std::max({p.f32, p.bf16_dot, p.bf16_tile});
  Buffer from = zeros(kStreamBytes), to = zeros(kStreamBytes);
  std::byte* buffers[] = {from.get(), to.get()};
  for (bool copy : {false, true}) {
    KernelSpec spec = stream_kernel(lib.target(), copy);
    (copy ? p.copy : p.read) =
        best_rate(lib.get(spec), buffers, seconds,
                  [&](double took) { return spec.bytes / took; });
  }
  return p;
}

double measure_read(KernelLibrary& lib, ThreadPool& pool,
                    std::span<std::byte> data) {
  constexpr int64_t kTask = 512 << 10;
  // Two ways, as it depends on the machine whether asking ahead helps.
  auto kernel = [&](bool ahead) {
    KernelSpec k;
    k.key = ahead ? "stream read ahead" : "stream read tasks";
    k.emit = [ahead](Emit& e) {
      const int L = e.lanes(), unroll = 256 / (4 * L);
      V from = e.at(e.buffer(0), e.task(), kTask);
      Vs sums =
          e.loop(e.i(0), e.i(kTask / 4), unroll * L,
                 Vs(unroll, e.zero(Ty::F32, 0)), [&](V k, Vs s) {
                   V line = e.at(from, k);
                   for (int l = 0; ahead && l < 4; ++l)
                     e.prefetch(e.at(line, 16 * (64 + l)), 2);
                   for (int u = 0; u < unroll; ++u)
                     s[u] = e.add(
                         s[u], e.vload_aligned(DType::F32, e.at(line, u * L)));
                   return s;
                 });
      V sum = sums[0];
      for (int u = 1; u < unroll; ++u) sum = e.add(sum, sums[u]);
      e.vstore(DType::F32, sum, e.scratch());
    };
    return k;
  };
  const int64_t tasks = std::max<int64_t>(1, int64_t(data.size()) / kTask);
  MOEC_CHECK(int64_t(data.size()) >= tasks * kTask);
  std::memset(data.data(), 0, data.size());
  std::byte* buffers[] = {data.data()};
  std::vector<float> scratch(size_t(pool.threads()) * 64 + 16);
  auto* base =
      reinterpret_cast<std::byte*>((uintptr_t(scratch.data()) + 63) / 64 * 64);
  double best = 0;
  for (bool ahead : {false, true}) {
    KernelFn fn = lib.get(kernel(ahead));
    for (int round = 0; round < 4; ++round) {
      auto start = std::chrono::steady_clock::now();
      pool.run(tasks, [&](int64_t task, int thread) {
        fn(buffers, task, base + thread * 256);
      });
      std::chrono::duration<double> time =
          std::chrono::steady_clock::now() - start;
      best = std::max(best, double(tasks * kTask) / time.count());
    }
  }
  return best;
}

}  // namespace moec
