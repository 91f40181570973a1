#include "codegen/cpu/attention_bench.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <random>

#include "codegen/cpu/jit.h"

namespace moec {

namespace {

struct Memory {
  std::vector<std::byte> bytes;
  explicit Memory(int64_t n) : bytes(size_t(n) + 64) {}
  std::byte* data() {
    auto at = (reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64;
    return reinterpret_cast<std::byte*>(at);
  }
};

Memory random_values(int64_t n, bool bf16, unsigned seed) {
  Memory m(n * (bf16 ? 2 : 4));
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  for (int64_t k = 0; k < n; ++k) {
    float x = normal(gen);
    uint16_t h = f32_to_bf16(x);
    if (bf16)
      std::memcpy(m.data() + 2 * k, &h, 2);
    else
      std::memcpy(m.data() + 4 * k, &x, 4);
  }
  return m;
}

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
  const int64_t width = s.bf16 ? 2 : 4;
  Memory q = random_values(nq * s.dim, s.bf16, 1);
  Memory k = random_values(nk * s.dim, s.bf16, 2);
  Memory v = random_values(nk * s.value_dim, s.bf16, 3);
  Memory dout = random_values(nq * s.value_dim, s.bf16, 4);
  Memory o(nq * s.value_dim * width), lse(nq * 4);
  Memory dq(nq * s.dim * width), dk(nk * s.dim * width),
      dv(nk * s.value_dim * width);
  Memory packed(s.bf16 ? attention_packed_bytes(s) : 0);
  uint32_t key[2] = {1, 2};
  std::vector<BoundLaunch> forward;
  if (s.bf16)
    forward.push_back(
        {attention_pack(s, lib.target()), {k.data(), v.data(), packed.data()}});
  auto with_key = [&](std::vector<std::byte*> in,
                      std::initializer_list<Memory*> out) {
    if (s.dropout > 0) in.push_back(reinterpret_cast<std::byte*>(key));
    for (Memory* m : out) in.push_back(m->data());
    return in;
  };
  forward.push_back(
      {attention_forward(s, lib.target()),
       with_key({q.data(), k.data(), v.data()}, {&o, &lse, &packed})});
  const BoundLaunch backward = {attention_backward(s, lib.target()),
                                with_key({q.data(), k.data(), v.data(),
                                          o.data(), lse.data(), dout.data()},
                                         {&dq, &dk, &dv})};
  double pairs = s.causal && !s.window ? double(s.q_len) * double(s.k_len) / 2
                                       : attention_pairs(s);
  double flops =
      2 * pairs * double(s.batch * s.heads) * double(s.dim + s.value_dim);
  const std::string name = attention_name(s);
  std::vector<BenchRow> rows = {
      time_launches(lib, name + " forward", forward, s.bf16, seconds),
      time_launches(lib, name + " backward", {&backward, 1}, s.bf16, seconds)};
  rows[0].flops = flops, rows[1].flops = 2.5 * flops;
  return rows;
}

}  // namespace moec
