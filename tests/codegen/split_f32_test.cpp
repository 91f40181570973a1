// f32 products as sums of bf16 products: as exact as those in f32.
#include <cmath>
#include <limits>

#include "codegen/cpu/matmul.h"
#include "runtime/buffer.h"
#include "tests/codegen/harness.h"
#include "tests/test.h"

namespace moec {
namespace {

using Matrix = std::vector<float>;

// Numbers of both signs whose 24 bits are all in use, over 2^-12 .. 2^12.
Matrix scattered(int64_t n, uint64_t seed) {
  Matrix x(n);
  uint64_t s = seed;
  for (float& v : x) {
    s = s * 6364136223846793005u + 1442695040888963407u;
    const float fraction = 1 + float(s >> 41) * 0x1p-23f;
    v = std::ldexp(s & (1u << 20) ? -fraction : fraction,
                   int(s >> 32) % 25 - 12);
  }
  return x;
}

struct Product {
  int64_t m, n, k;
  bool trans_a, trans_b;
  Matrix a, b;

  Matrix run(const Target& t, bool workspace) const {
    KernelLibrary lib(t, "");
    MatmulDesc d = plain_matmul(m, n, k, trans_a, trans_b);
    MatmulKernels kernels = matmul_kernels(d, t, workspace ? 3 : -1);
    Matrix c(m * n);
    Buffer room(kernels.workspace_bytes + 64);
    auto bytes = [](const Matrix& x) {
      return reinterpret_cast<std::byte*>(const_cast<float*>(x.data()));
    };
    std::byte* buffers[] = {bytes(a), bytes(b), bytes(c), room.data()};
    for (const KernelSpec& s : kernels.launches) {
      Buffer scratch(s.scratch_bytes + 64);
      KernelFn fn = lib.get(s);
      for (int64_t task = 0; task < s.tasks; ++task)
        fn(buffers, task, scratch.data());
    }
    return c;
  }
  double left(int64_t i, int64_t x) const {
    return a[trans_a ? x * m + i : i * k + x];
  }
  double right(int64_t x, int64_t j) const {
    return b[trans_b ? j * k + x : x * n + j];
  }
  // Root mean square of the errors, each by the sum of the products' sizes.
  double error(const Matrix& c) const {
    double total = 0;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0, size = 0;
        for (int64_t x = 0; x < k; ++x) {
          const double p = left(i, x) * right(x, j);
          sum += p, size += std::fabs(p);
        }
        const double e = (c[i * n + j] - sum) / size;
        total += e * e;
      }
    return std::sqrt(total / double(m * n));
  }
};

Product product(int64_t m, int64_t n, int64_t k, bool ta, bool tb) {
  return {m, n, k, ta, tb, scattered(m * k, 1), scattered(k * n, 2)};
}

bool splits(const Target& t) {
  const MatmulKernels k = matmul_kernels(plain_matmul(200, 200, 100), t, -1);
  return k.launches[0].key.find("split") != std::string::npos;
}

TEST_CASE("f32 products of split operands are as exact as of whole ones") {
  const Target fma = make_target("native-noamx"), t = make_target("native");
  CHECK(splits(t) == t.amx_bf16);
  CHECK(!splits(fma));
  for (int form = 0; form < 4; ++form)
    for (auto [m, k] : {std::pair{200, 64},
                        {200, 301},
                        {200, 1100},
                        {288, 64},
                        {288, 1088}}) {
      const Product p = product(m, 203, k, form & 1, form & 2);
      CAPTURE(form);
      CAPTURE(m);
      CAPTURE(k);
      const double plain = p.error(p.run(fma, false));
      const Matrix split = p.run(t, false);
      CHECK(p.error(split) < 1.1 * plain);
      CHECK(p.error(split) < 1e-7);
      CHECK(split == p.run(t, true));
    }
}

TEST_CASE("a short split product has almost no error of its own") {
  // one product each: what is left out of nine is below half an ulp
  Product p = product(200, 200, 64, false, false);
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t x = 0; x < p.k; ++x)
      if (x != i % p.k) p.a[i * p.k + x] = 0;
  const Matrix c = p.run(make_target("native"), false);
  for (int64_t i = 0; i < p.m; ++i)
    for (int64_t j = 0; j < p.n; ++j) {
      const double want = p.left(i, i % p.k) * p.right(i % p.k, j);
      CHECK(std::fabs(c[i * p.n + j] / want - 1) < 1.5 * 0x1p-23);
    }
}

TEST_CASE("what is infinite or no number shows in a split product") {
  using Limits = std::numeric_limits<float>;
  Product p = product(200, 200, 100, false, true);
  p.a[0 * 100 + 7] = Limits::infinity();
  p.a[1 * 100 + 99] = -Limits::infinity();
  p.a[2 * 100 + 50] = Limits::quiet_NaN();
  p.b[3 * 100 + 31] = Limits::infinity();
  for (const char* level : {"native", "native-noamx"}) {
    const Matrix c = p.run(make_target(level), true);
    CAPTURE(level);
    for (int64_t i = 0; i < 200; ++i)
      for (int64_t j = 0; j < 200; ++j)
        CHECK(std::isfinite(c[i * 200 + j]) == (i > 2 && j != 3));
  }
}

}  // namespace
}  // namespace moec
