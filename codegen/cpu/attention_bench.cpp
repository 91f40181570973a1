#include "codegen/cpu/attention_bench.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <random>

#include "codegen/cpu/jit.h"
#include "support/error.h"

namespace moec {

namespace {

// Tensors side by side in one buffer, as the runtime has them.
struct Arena {
  Buffer buffer;
  int64_t used = 0;
  bool bf16;

  Arena(int64_t bytes, bool bf16) : buffer(bench_buffer(bytes)), bf16(bf16) {}
  std::byte* take(int64_t bytes) {
    MOEC_CHECK(used + bytes <= buffer.size());
    std::byte* p = buffer.data() + used;
    used += (bytes + 63) / 64 * 64;
    return p;
  }
  // n values of the dtype.
  std::byte* zeros(int64_t n) { return take(n * (bf16 ? 2 : 4)); }
  std::byte* random(int64_t n, unsigned seed) {
    std::byte* p = zeros(n);
    std::mt19937 gen(seed);
    std::normal_distribution<float> normal;
    for (int64_t k = 0; k < n; ++k) {
      float x = normal(gen);
      uint16_t h = f32_to_bf16(x);
      if (bf16)
        std::memcpy(p + 2 * k, &h, 2);
      else
        std::memcpy(p + 4 * k, &x, 4);
    }
    return p;
  }
};

AttentionSpec shape(int64_t batch, int64_t heads, int64_t kv_heads,
                    int64_t length, int64_t dim) {
  AttentionSpec s;
  s.batch = batch, s.heads = heads, s.kv_heads = kv_heads;
  s.q_len = s.k_len = length;
  s.dim = s.value_dim = dim;
  s.scale = 1 / std::sqrt(double(dim));
  s.causal = true;
  s.set_layout(false);
  return s;
}

}  // namespace

std::string attention_name(const AttentionSpec& s) {
  std::string n = fmt::format("B{} H{}", s.batch, s.heads);
  if (s.kv_heads != s.heads) n += fmt::format("/{}", s.kv_heads);
  n += fmt::format(" S{}", s.q_len);
  if (s.k_len != s.q_len) n += fmt::format("x{}", s.k_len);
  n += fmt::format(" D{}", s.dim);
  if (s.value_dim != s.dim) n += fmt::format("/{}", s.value_dim);
  if (s.window)
    n += fmt::format(" window {}", s.window);
  else if (s.causal)
    n += " causal";
  if (s.dropout > 0) n += fmt::format(" dropout {}", s.dropout);
  // the layout of projections, [B,T,H,D]
  if (s.q.row != s.dim) n += " bthd";
  return n + (s.bf16 ? " bf16" : "");
}

std::vector<AttentionSpec> bench_attention_shapes(bool bf16) {
  std::vector<AttentionSpec> all = {
      shape(4, 8, 8, 512, 64), shape(4, 12, 4, 512, 64),
      shape(16, 8, 8, 128, 32), shape(1, 8, 8, 2048, 128)};
  auto add = [&](AttentionSpec s, auto change) {
    change(s);
    all.push_back(s);
  };
  add(all[0], [](auto& s) { s.set_layout(true); });
  add(all[0], [](auto& s) { s.dropout = 0.1; });
  add(all[2], [](auto& s) { s.dropout = 0.1; });
  add(all[3], [](auto& s) { s.window = 256; });
  add(all[0], [](auto& s) { s.causal = false; });
  add(shape(3, 5, 5, 203, 40), [](auto& s) { s.value_dim = 56; });
  add(shape(2, 6, 2, 77, 33), [](auto& s) { s.k_len = 300; });
  for (auto& s : all) {
    s.bf16 = bf16;
    s.set_layout(s.q.row != s.dim);
  }
  return all;
}

std::vector<BenchRow> bench_attention(KernelLibrary& lib,
                                      const AttentionSpec& s, double seconds) {
  const int64_t nq = s.batch * s.heads * s.q_len,
                nk = s.batch * s.kv_heads * s.k_len;
  const int64_t packed_bytes = attention_packed_bytes(s, lib.target());
  const int64_t partial_bytes = attention_partial_bytes(s);
  const int64_t values = 2 * (nq + nk) * (s.dim + s.value_dim);
  Arena arena(values * (s.bf16 ? 2 : 4) + nq * 4 + packed_bytes +
                  partial_bytes + 64 * 16,
              s.bf16);
  std::byte *q = arena.random(nq * s.dim, 1), *k = arena.random(nk * s.dim, 2),
            *v = arena.random(nk * s.value_dim, 3),
            *dout = arena.random(nq * s.value_dim, 4),
            *o = arena.zeros(nq * s.value_dim), *lse = arena.take(nq * 4),
            *dq = arena.zeros(nq * s.dim), *dk = arena.zeros(nk * s.dim),
            *dv = arena.zeros(nk * s.value_dim),
            *packed = arena.take(packed_bytes),
            *partial = arena.take(partial_bytes);
  uint32_t key[2] = {1, 2};
  using Buffers = std::vector<std::byte*>;
  auto with_key = [&](Buffers in, const Buffers& out) {
    if (s.dropout > 0) in.push_back(reinterpret_cast<std::byte*>(key));
    in.insert(in.end(), out.begin(), out.end());
    return in;
  };
  std::vector<BoundLaunch> forward;
  if (packed_bytes)
    forward.push_back({attention_pack(s, lib.target()), {k, v, packed}});
  forward.push_back({attention_forward(s, lib.target()),
                     with_key({q, k, v}, {o, lse, packed})});
  std::vector<BoundLaunch> backward = {
      {attention_backward(s, lib.target()),
       with_key({q, k, v, o, lse, dout}, {dq, dk, dv, partial})}};
  if (partial_bytes)
    backward.push_back({attention_sum(s, lib.target()), {partial, dq}});
  double pairs = s.causal && !s.window ? double(s.q_len) * double(s.k_len) / 2
                                       : attention_pairs(s);
  double flops =
      2 * pairs * double(s.batch * s.heads) * double(s.dim + s.value_dim);
  const std::string name = attention_name(s);
  std::vector<BenchRow> rows = {
      time_launches(lib, name + " forward", forward, s.bf16, seconds),
      time_launches(lib, name + " backward", backward, s.bf16, seconds)};
  rows[0].flops = flops, rows[1].flops = 2.5 * flops;
  return rows;
}

}  // namespace moec
