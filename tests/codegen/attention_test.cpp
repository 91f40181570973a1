// Attention kernels against a double reference, at every feature level.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <map>

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
  // what the kernels see in bf16, one behind each of the above but lse
  std::map<Floats*, std::vector<uint16_t>> halves;
  std::vector<std::byte> packed, partial;

  Problem(const AttentionSpec& spec, const Target& t) : s(spec) {
    size_t nq = size_t(s.batch * s.heads * s.q_len);
    size_t nk = size_t(s.batch * s.kv_heads * s.k_len);
    q = random_floats(nq * s.dim, 1), k = random_floats(nk * s.dim, 2);
    v = random_floats(nk * s.value_dim, 3);
    dout = random_floats(nq * s.value_dim, 4);
    o.assign(nq * s.value_dim, NAN), lse.assign(nq, NAN);
    dq.assign(nq * s.dim, NAN), dk.assign(nk * s.dim, NAN);
    dv.assign(nk * s.value_dim, NAN);
    packed.resize(attention_packed_bytes(s, t), std::byte(0xff));
    partial.resize(attention_partial_bytes(s), std::byte(0xff));
    if (!s.bf16) return;
    for (auto* x : {&q, &k, &v, &o, &dout, &dq, &dk, &dv})
      for (float& f : *x) {
        halves[x].push_back(f32_to_bf16(f));
        f = bf16_to_f32(halves[x].back());
      }
  }

  void* data(Floats& x) {
    return s.bf16 ? static_cast<void*>(halves[&x].data()) : x.data();
  }
  std::vector<void*> forward_buffers() {
    std::vector<void*> b = {data(q), data(k), data(v)};
    if (s.dropout > 0) b.push_back(key);
    b.push_back(data(o)), b.push_back(lse.data());
    if (!packed.empty()) b.push_back(packed.data());
    return b;
  }
  std::vector<void*> backward_buffers() {
    std::vector<void*> b = {data(q), data(k),    data(v),
                            data(o), lse.data(), data(dout)};
    if (s.dropout > 0) b.push_back(key);
    for (auto* x : {&dq, &dk, &dv}) b.push_back(data(*x));
    if (!partial.empty()) b.push_back(partial.data());
    return b;
  }
  void run(KernelLibrary& lib) {
    OneThread thread;
    auto one = [&](const KernelSpec& spec, std::vector<void*> buffers) {
      thread.run(lib.get(spec), spec, std::move(buffers));
    };
    if (!packed.empty())
      one(attention_pack(s, lib.target()), {data(k), data(v), packed.data()});
    one(attention_forward(s, lib.target()), forward_buffers());
    one(attention_backward(s, lib.target()), backward_buffers());
    if (!partial.empty())
      one(attention_sum(s, lib.target()), {partial.data(), data(dq)});
    for (auto& [floats, half] : halves)
      for (size_t i = 0; i < half.size(); ++i)
        (*floats)[i] = bf16_to_f32(half[i]);
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
  Problem p(s, t);
  CAPTURE(t.level);
  CAPTURE(attention_forward(s, t).key);
  p.run(lib);
  Reference r = reference(p);
  CHECK(relative_error(r.o, p.o) < (s.bf16 ? 4e-3 : 2e-6));
  // of bf16 it is the sum of the weights as they are rounded
  CHECK(relative_error(r.lse, p.lse) < (s.bf16 ? 5e-4 : 2e-6));
  CHECK(relative_error(r.dq, p.dq) < (s.bf16 ? 8e-3 : 5e-6));
  CHECK(relative_error(r.dk, p.dk) < (s.bf16 ? 8e-3 : 5e-6));
  CHECK(relative_error(r.dv, p.dv) < (s.bf16 ? 8e-3 : 5e-6));
}

void check_both(const Target& t, AttentionSpec s) {
  check(t, s);
  s.bf16 = true;
  check(t, s);
}

TEST_CASE("attention agrees with the definition") {
  for (const Target& t : test_targets()) {
    check_both(t, make_spec(1, 4, 2, 203, 203, 20, 36, true));
    check_both(t, make_spec(2, 3, 1, 37, 61, 7, 5, false));
    AttentionSpec window = make_spec(1, 2, 1, 170, 300, 16, 24, true);
    window.window = 3;
    window.set_layout(true);
    check_both(t, window);
    // heads so many that rows lie far apart
    AttentionSpec apart = make_spec(1, 32, 16, 70, 83, 33, 35, true);
    apart.set_layout(true);
    if (t.level == "native" || t.level == "x86-64-v3") check(t, apart);
    // compiling is what takes long; the rest is the same at every level
    if (t.level != "native" && !long_tests()) continue;
    check_both(t, make_spec(2, 2, 2, 64, 64, 32, 32, true));
    check_both(t, make_spec(1, 1, 1, 5, 150, 16, 16, true));
    check_both(t, make_spec(1, 2, 1, 130, 700, 33, 64, true));
    check(t, make_spec(1, 1, 1, 90, 90, 132, 130, true));
    // blocks of keys whose first queries see all of them
    check(t, make_spec(1, 4, 2, 300, 556, 64, 48, true));
    // f32 long and wide enough for tile registers
    check(t, make_spec(1, 4, 2, 303, 403, 72, 64, true));
    AttentionSpec wide = make_spec(1, 2, 2, 600, 600, 64, 67, true);
    wide.window = 240;
    wide.set_layout(true);
    check(t, wide);
    check(t, make_spec(1, 1, 1, 45, 1600, 64, 64, false));
    // keys with several owners
    check_both(t, make_spec(1, 2, 1, 1101, 1101, 20, 9, true));
    check_both(t, make_spec(1, 1, 1, 45, 1600, 16, 16, false));
    AttentionSpec negative = make_spec(1, 2, 2, 70, 301, 24, 24, false);
    negative.scale = -0.3;
    check_both(t, negative);
    window = make_spec(1, 2, 1, 300, 300, 16, 24, true);
    window.window = 47;
    check_both(t, window);
    // keys and values that are operands where they lie
    window = make_spec(2, 4, 2, 100, 352, 64, 32, true);
    window.window = 90;
    window.set_layout(true);
    check_both(t, window);
    // queries so many that the forward's tasks have more
    window = make_spec(1, 1, 1, 1030, 1043, 8, 8, true);
    window.window = 131;
    window.set_layout(true);
    check(t, window);
    check(t, make_spec(1, 1, 1, 530, 91, 8, 8, false));
  }
}

// In tile registers most strips of keys are weighed as if no score was far from
// the others.
TEST_CASE("attention on bf16 weighs scores near and far") {
  for (const Target& t : test_targets()) {
    if (t.level != "native" && !long_tests()) continue;
    auto causal = [&](int64_t length, int64_t dim, int64_t value_dim) {
      AttentionSpec s =
          make_spec(1, 2, 1, length, length + 32, dim, value_dim, true);
      s.bf16 = true;
      return s;
    };
    check(t, causal(700, 128, 128));
    AttentionSpec s = causal(333, 96, 160);
    check(t, s);
    s.window = 300;
    check(t, s);
    for (double scale : {0.7, -2.0}) {
      s = causal(400, 64, 96);
      s.scale = scale;
      check(t, s);
      s.causal = false;
      check(t, s);
    }
  }
}

// Sizes where f32 operands are split for tile registers if there are any.
TEST_CASE("attention on split f32 agrees with the definition") {
  for (const Target& t : test_targets()) {
    if (!t.amx_bf16) continue;
    auto causal = [&](int64_t group, int64_t q_len, int64_t k_len, int64_t dim,
                      int64_t value_dim) {
      return make_spec(1, 2 * group, 2, q_len, k_len, dim, value_dim, true);
    };
    AttentionSpec s = causal(1, 300, 300, 64, 64);
    CHECK(attention_packed_bytes(s, t) == 0);
    check(t, s);
    check(t, causal(3, 301, 333, 62, 61));
    check(t, causal(1, 600, 600, 32, 30));
    check(t, causal(2, 65, 400, 96, 128));
    check(t, causal(1, 130, 257, 260, 132));
    // tasks that share keys
    check(t, make_spec(1, 6, 1, 450, 450, 64, 64, true));
    s = make_spec(2, 2, 2, 190, 317, 64, 64, false);
    s.scale = -0.2;
    check(t, s);
    // rows that lie apart, and windows within a block and over several
    for (int64_t window : {150, 300}) {
      s = causal(2, 390, 450, 64, 64);
      s.window = window;
      s.set_layout(true);
      check(t, s);
    }
    s = causal(1, 390, 610, 128, 128);
    check(t, s);
    s.window = 210;
    check(t, s);
    // keys with several owners
    check(t, make_spec(1, 1, 1, 1060, 1060, 64, 64, true));
    s = causal(8, 140, 140, 128, 128);
    s.set_layout(true);
    check(t, s);
    for (int64_t keys : {320, 333}) {
      s = causal(2, 320, keys, 64, 64);
      s.dropout = 0.2, s.stream = 5;
      check(t, s);
    }
  }
}

TEST_CASE("attention regenerates dropout from its counter") {
  for (const Target& t : test_targets()) {
    AttentionSpec s = make_spec(1, 2, 2, 45, 75, 8, 8, true);
    s.dropout = 0.5, s.stream = (int64_t(1) << 33) + 3;
    check_both(t, s);
    if (t.level != "native" && !long_tests()) continue;
    s = make_spec(2, 4, 2, 192, 192, 8, 8, true);
    s.dropout = 0.2, s.stream = 7;
    check_both(t, s);
    s = make_spec(1, 2, 1, 190, 320, 64, 64, true);
    s.dropout = 0.2, s.stream = 7;
    check(t, s);
    s = make_spec(1, 1, 1, 1088, 1088, 8, 8, true);
    s.dropout = 0.3, s.stream = 1;
    check(t, s);
  }
}

}  // namespace
}  // namespace moec
