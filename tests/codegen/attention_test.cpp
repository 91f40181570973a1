// Attention kernels against a double reference, at every feature level.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

#include "codegen/cpu/attention.h"
#include "support/rng.h"
#include "tests/codegen/harness.h"
#include "tests/codegen/kernel_bench.h"
#include "tests/test.h"

namespace moec {
namespace {

constexpr uint64_t kKey = 0x1234567890abcdefull;

struct Problem {
  AttentionSpec s;
  Floats q, k, v, o, lse, dout, dq, dk, dv;
  uint32_t key[2] = {uint32_t(kKey), uint32_t(kKey >> 32)};

  explicit Problem(const AttentionSpec& spec) : s(spec) {
    size_t nq = size_t(s.batch * s.heads * s.q_len);
    size_t nk = size_t(s.batch * s.kv_heads * s.k_len);
    q = random_floats(nq * s.dim, 1), k = random_floats(nk * s.dim, 2);
    v = random_floats(nk * s.value_dim, 3);
    dout = random_floats(nq * s.value_dim, 4);
    o.assign(nq * s.value_dim, NAN), lse.assign(nq, NAN);
    dq.assign(nq * s.dim, NAN), dk.assign(nk * s.dim, NAN);
    dv.assign(nk * s.value_dim, NAN);
  }

  std::vector<void*> forward_buffers() {
    std::vector<void*> b = {q.data(), k.data(), v.data()};
    if (s.dropout > 0) b.push_back(key);
    b.push_back(o.data()), b.push_back(lse.data());
    return b;
  }
  std::vector<void*> backward_buffers() {
    std::vector<void*> b = {q.data(), k.data(),   v.data(),
                            o.data(), lse.data(), dout.data()};
    if (s.dropout > 0) b.push_back(key);
    for (auto* x : {&dq, &dk, &dv}) b.push_back(x->data());
    return b;
  }
};

struct Reference {
  std::vector<double> o, lse, dq, dk, dv;
};

Reference reference(const Problem& p) {
  const AttentionSpec& s = p.s;
  Reference r;
  r.o.resize(p.o.size()), r.lse.resize(p.lse.size());
  r.dq.resize(p.q.size()), r.dk.resize(p.k.size()), r.dv.resize(p.v.size());
  auto at = [](const AttentionView& v, int64_t b, int64_t h, int64_t t) {
    return size_t(b * v.batch + h * v.head + t * v.row);
  };
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.q_len; ++i) {
        const int64_t kv = h / (s.heads / s.kv_heads);
        const int64_t row = (b * s.heads + h) * s.q_len + i;
        const size_t q = at(s.q, b, h, i), o = at(s.o, b, h, i);
        std::vector<double> w(s.k_len), f(s.k_len, 1);
        double best = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = 0; j < s.k_len; ++j) {
          int64_t back = i + s.k_len - s.q_len - j;
          if (s.causal && (back < 0 || (s.window && back >= s.window))) {
            w[j] = -INFINITY;
          } else {
            for (int64_t c = 0; c < s.dim; ++c)
              w[j] += double(p.q[q + c]) * p.k[at(s.k, b, kv, j) + c];
            w[j] *= s.scale;
          }
          best = std::max(best, w[j]);
          if (s.dropout > 0)
            f[j] = random_word(kKey, uint64_t(s.stream), row * s.k_len + j) <
                           dropout_threshold(s.dropout)
                       ? 0
                       : 1 / (1 - s.dropout);
        }
        for (double& x : w) sum += x = std::exp(x - best);
        for (double& x : w) x /= sum;
        r.lse[row] = best + std::log(sum);
        for (int64_t c = 0; c < s.value_dim; ++c) {
          for (int64_t j = 0; j < s.k_len; ++j)
            r.o[o + c] += w[j] * f[j] * p.v[at(s.v, b, kv, j) + c];
          delta += r.o[o + c] * p.dout[o + c];
        }
        for (int64_t j = 0; j < s.k_len; ++j) {
          const size_t k = at(s.k, b, kv, j), v = at(s.v, b, kv, j);
          double dp = 0;
          for (int64_t c = 0; c < s.value_dim; ++c) {
            dp += double(p.dout[o + c]) * p.v[v + c];
            r.dv[v + c] += w[j] * f[j] * p.dout[o + c];
          }
          double ds = w[j] * (dp * f[j] - delta) * s.scale;
          for (int64_t c = 0; c < s.dim; ++c) {
            r.dq[q + c] += ds * p.k[k + c];
            r.dk[k + c] += ds * p.q[q + c];
          }
        }
      }
  return r;
}

AttentionSpec make_spec(int64_t batch, int64_t heads, int64_t kv_heads,
                        int64_t q_len, int64_t k_len, int64_t dim,
                        int64_t value_dim, bool causal) {
  AttentionSpec s{.batch = batch,
                  .heads = heads,
                  .kv_heads = kv_heads,
                  .q_len = q_len,
                  .k_len = k_len,
                  .dim = dim,
                  .value_dim = value_dim,
                  .causal = causal,
                  .scale = 1 / std::sqrt(double(dim))};
  s.set_layout(false);
  return s;
}

void check(const Target& t, AttentionSpec s) {
  KernelLibrary lib(t, "");
  Problem p(s);
  KernelSpec forward = attention_forward(s, t);
  KernelSpec backward = attention_backward(s, t);
  CAPTURE(t.level);
  CAPTURE(forward.key);
  OneThread thread;
  thread.run(lib.get(forward), forward, p.forward_buffers());
  thread.run(lib.get(backward), backward, p.backward_buffers());
  Reference r = reference(p);
  CHECK(relative_error(r.o, p.o) < 2e-6);
  CHECK(relative_error(r.lse, p.lse) < 2e-6);
  CHECK(relative_error(r.dq, p.dq) < 5e-6);
  CHECK(relative_error(r.dk, p.dk) < 5e-6);
  CHECK(relative_error(r.dv, p.dv) < 5e-6);
}

TEST_CASE("attention agrees with the definition") {
  for (const Target& t : test_targets()) {
    check(t, make_spec(2, 2, 2, 64, 64, 32, 32, true));
    check(t, make_spec(1, 4, 2, 203, 203, 20, 36, true));
    check(t, make_spec(2, 3, 1, 37, 61, 7, 5, false));
    check(t, make_spec(1, 1, 1, 5, 150, 16, 16, true));
    AttentionSpec window = make_spec(1, 2, 1, 300, 300, 16, 24, true);
    window.window = 47;
    check(t, window);
    window.q_len = 170, window.window = 3;
    window.set_layout(true);
    check(t, window);
  }
}

TEST_CASE("attention regenerates dropout from its counter") {
  for (const Target& t : test_targets()) {
    AttentionSpec s = make_spec(2, 4, 2, 192, 192, 8, 8, true);
    s.dropout = 0.2, s.stream = 7;
    check(t, s);
    s = make_spec(1, 2, 2, 45, 75, 8, 8, true);
    s.dropout = 0.5, s.stream = (int64_t(1) << 33) + 3;
    check(t, s);
  }
}

void bench(KernelLibrary& lib, AttentionSpec s) {
  Problem p(s);
  KernelSpec forward = attention_forward(s, lib.target());
  KernelSpec backward = attention_backward(s, lib.target());
  KernelFn f = lib.get(forward), b = lib.get(backward);
  double tf = 1e9, tb = 1e9, peak = measure_flops(lib, false);
  OneThread thread;
  for (int r = 0; r < 9; ++r) {
    double start = thread_seconds();
    thread.run(f, forward, p.forward_buffers());
    double middle = thread_seconds();
    thread.run(b, backward, p.backward_buffers());
    tf = std::min(tf, middle - start);
    tb = std::min(tb, thread_seconds() - middle);
  }
  peak = std::max(peak, measure_flops(lib, false));
  // the convention of the field: half of all pairs under a causal mask
  double pairs = double(s.batch * s.heads * s.q_len) * double(s.k_len) / 2;
  double ff = 2 * pairs * double(s.dim + s.value_dim), fb = 2.5 * ff;
  fmt::print(
      "B{} H{}/{} S{} D{} drop {}: fwd {:.2f} ms {:.1f} %  bwd {:.2f} ms "
      "{:.1f} %  of {:.1f} GFLOP/s\n",
      s.batch, s.heads, s.kv_heads, s.q_len, s.dim, s.dropout, tf * 1e3,
      100 * ff / tf / peak, tb * 1e3, 100 * fb / tb / peak, peak / 1e9);
}

// MOEC_BENCH=1 build/release/tests/codegen/test_codegen_attention -tc=*rate*
TEST_CASE("attention rate") {
  if (!std::getenv("MOEC_BENCH")) return;
  KernelLibrary lib(host_target(), "");
  bench(lib, make_spec(4, 8, 8, 512, 512, 64, 64, true));
  bench(lib, make_spec(4, 12, 4, 512, 512, 64, 64, true));
  bench(lib, make_spec(16, 8, 8, 128, 128, 32, 32, true));
  bench(lib, make_spec(1, 8, 8, 2048, 2048, 128, 128, true));
  AttentionSpec s = make_spec(16, 8, 8, 128, 128, 32, 32, true);
  s.dropout = 0.1;
  bench(lib, s);
}

}  // namespace
}  // namespace moec
