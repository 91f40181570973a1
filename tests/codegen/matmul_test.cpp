// The matmul family against double, at every feature level.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

#include "codegen/cpu/matmul.h"
#include "support/rng.h"
#include "tests/codegen/harness.h"
#include "tests/test.h"

namespace moec {
namespace {

// A deterministic stream of small numbers and sizes.
struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state >> 33);
  }
  int64_t size(int64_t lo, int64_t hi) {
    return lo + int64_t(next()) % (hi - lo + 1);
  }
  float value() { return float(int(next() % 2001) - 1000) * 1e-3f; }
};

// A buffer of a dtype with guard bytes around it.
struct Buffer {
  static constexpr int64_t kGuard = 64;
  DType dtype;
  std::vector<std::byte> bytes;
  Buffer(int64_t elements, DType t) : dtype(t) {
    bytes.assign(elements * dtype_size(t) + 2 * kGuard, std::byte{0x7a});
  }
  std::byte* data() { return bytes.data() + kGuard; }
  double get(int64_t i) const {
    const std::byte* p = bytes.data() + kGuard + i * dtype_size(dtype);
    if (dtype == DType::F32) {
      float f;
      std::memcpy(&f, p, 4);
      return f;
    }
    uint16_t h;
    std::memcpy(&h, p, 2);
    return bf16_to_f32(h);
  }
  void set(int64_t i, float v) {
    std::byte* p = data() + i * dtype_size(dtype);
    uint16_t h = f32_to_bf16(v);
    if (dtype == DType::F32)
      std::memcpy(p, &v, 4);
    else
      std::memcpy(p, &h, 2);
  }
  void fill(Random& r) {
    int64_t n = (int64_t(bytes.size()) - 2 * kGuard) / dtype_size(dtype);
    for (int64_t i = 0; i < n; ++i) set(i, r.value());
  }
  bool guards_intact() const {
    auto ok = [](std::byte b) { return b == std::byte{0x7a}; };
    return std::all_of(bytes.begin(), bytes.begin() + kGuard, ok) &&
           std::all_of(bytes.end() - kGuard, bytes.end(), ok);
  }
};

struct Case {
  MatmulDesc desc;
  std::vector<Buffer> buffers;
  std::vector<int32_t> offsets;
};

// Runs one launch on `threads` threads, task t on thread t % threads.
void run(KernelLibrary& lib, const KernelSpec& spec,
         const std::vector<std::byte*>& ptrs, int threads) {
  KernelFn fn = lib.get(spec);
  auto work = [&](int thread) {
    auto* scratch = static_cast<std::byte*>(
        std::aligned_alloc(64, (spec.scratch_bytes + 63) / 64 * 64 + 64));
    std::memset(scratch, 0x7f, spec.scratch_bytes);  // NaN-like leftovers
    for (int64_t t = thread; t < spec.tasks; t += threads)
      fn(ptrs.data(), t, scratch);
    std::free(scratch);
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(work, t);
  work(0);
  for (auto& t : pool) t.join();
}

// Runs the product. With a workspace, its end is guarded.
void launch(KernelLibrary& lib, Case& c, int threads = 1,
            bool workspace = false) {
  std::vector<std::byte*> ptrs;
  for (Buffer& b : c.buffers) ptrs.push_back(b.data());
  ptrs.push_back(reinterpret_cast<std::byte*>(c.offsets.data()));
  MatmulKernels k =
      matmul_kernels(c.desc, lib.target(), workspace ? int(ptrs.size()) : -1);
  CHECK((workspace || k.launches.size() == 1));
  std::vector<std::byte> room(k.workspace_bytes + 128, std::byte{0x7f});
  ptrs.push_back(room.data() + (64 - uintptr_t(room.data()) % 64) % 64);
  for (const KernelSpec& spec : k.launches) run(lib, spec, ptrs, threads);
  for (int i = 0; i < 64; ++i)
    CHECK(ptrs.back()[k.workspace_bytes + i] == std::byte{0x7f});
}

double error_of(double got, double want) {
  return std::isnan(got) ? 1e30 : std::fabs(got - want) / (1 + std::fabs(want));
}

Case plain_case(Random& r, int64_t m, int64_t n, int64_t k, bool ta, bool tb,
                DType t = DType::F32) {
  Case c;
  c.desc = plain_matmul(m, n, k, ta, tb, t);
  c.buffers = {Buffer(m * k, t), Buffer(k * n, t), Buffer(m * n, t)};
  for (Buffer& b : c.buffers) b.fill(r);
  return c;
}

// The largest error of C; `before` is C's content before the launch.
double plain_error(const Case& c, const Buffer& before) {
  const MatmulDesc& d = c.desc;
  double worst = 0;
  for (int64_t i = 0; i < d.m; ++i)
    for (int64_t j = 0; j < d.n; ++j) {
      double sum = 0;
      for (int64_t x = 0; x < d.k; ++x)
        sum += c.buffers[0].get(i * d.a.row_stride + x * d.a.col_stride) *
               c.buffers[1].get(x * d.b.row_stride + j * d.b.col_stride);
      sum *= d.scale;
      if (d.accumulate) sum += before.get(i * d.n + j);
      worst = std::max(worst, error_of(c.buffers[2].get(i * d.n + j), sum));
    }
  return worst;
}

TEST_CASE("random sizes and forms agree with double, guards stay") {
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    Random r{42};
    for (int round = 0; round < 24; ++round) {
      const bool ta = round & 1, tb = round & 2, acc = round & 4;
      int64_t hi = round < 4 ? 5 : round < 16 ? 70 : 200;
      int64_t m = r.size(1, hi), n = r.size(1, hi), k = r.size(1, hi);
      if (round >= 20) k += 1100;  // several k blocks
      Case c = plain_case(r, m, n, k, ta, tb);
      c.desc.accumulate = acc;
      c.desc.scale = acc ? 0.5 : 1;
      Buffer before = c.buffers[2];
      launch(lib, c);
      CAPTURE(t.level);
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(k);
      CAPTURE(round);
      CHECK(plain_error(c, before) < 2e-5);
      for (Buffer& b : c.buffers) CHECK(b.guards_intact());
    }
  }
}

TEST_CASE("operands packed before agree with double and between threads") {
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    Random r{77};
    for (int round = 0; round < 12; ++round) {
      const bool ta = round & 1, tb = round & 2, bf16 = round >= 8;
      int64_t m = r.size(193, 300), n = r.size(20, 200), k = r.size(3, 90);
      if (round >= 4) m = r.size(60, 300), k += 1100;  // several k blocks
      if (bf16) m = r.size(260, 300), n = r.size(100, 140), k -= 500;
      Case c = plain_case(r, m, n, k, ta, tb, bf16 ? DType::BF16 : DType::F32);
      if (bf16) {
        c.desc.outputs[0].dtype = DType::F32;
        c.buffers[2] = Buffer(m * n, DType::F32);
      }
      Buffer before = c.buffers[2];
      CAPTURE(t.level);
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(k);
      CAPTURE(round);
      Case two = c;
      launch(lib, c, 1, true);
      launch(lib, two, 2, true);
      CHECK(plain_error(c, before) < 4e-5);
      CHECK(c.buffers[2].bytes == two.buffers[2].bytes);
      // the same sums in the same order without a workspace
      launch(lib, two, 1, false);
      CHECK(c.buffers[2].bytes == two.buffers[2].bytes);
      for (Buffer& b : c.buffers) CHECK(b.guards_intact());
    }
  }
}

TEST_CASE("long reductions in parts agree with double and between threads") {
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    Random r{78};
    for (auto [m, n] : {std::array<int64_t, 2>{33, 50}, {128, 65}, {380, 24}}) {
      Case c = plain_case(r, m, n, 2048, true, false);
      c.desc.scale = 0.5;
      c.desc.accumulate = n == 65;
      Buffer before = c.buffers[2];
      Case two = c;
      launch(lib, c, 1, true);
      launch(lib, two, 2, true);
      CAPTURE(t.level);
      CHECK(plain_error(c, before) < 4e-5);
      CHECK(c.buffers[2].bytes == two.buffers[2].bytes);
      for (Buffer& b : c.buffers) CHECK(b.guards_intact());
    }
  }
}

TEST_CASE("exact tiles, empty reductions, empty outputs") {
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    Random r{7};
    for (auto [m, n, k] : {std::array<int64_t, 3>{64, 64, 64},
                           {1, 96, 33},
                           {9, 17, 0},
                           {0, 4, 4},
                           {300, 32, 16},
                           {33, 1, 40}}) {
      Case c = plain_case(r, m, n, k, false, true);
      Buffer before = c.buffers[2];
      launch(lib, c);
      CAPTURE(t.level);
      CAPTURE(m);
      CHECK(plain_error(c, before) < 1e-5);
    }
  }
}

// bf16 products against double on the rounded operands: a f32 operand counts
// as rounded to bf16. Outputs in f32 show the accumulation's own error.
TEST_CASE("bf16 pairs, every operand dtype and form, odd sizes") {
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    Random r{21};
    for (int round = 0; round < 24; ++round) {
      const bool ta = round & 1, tb = round & 2;
      const DType types[] = {DType::BF16, DType::F32};
      int64_t m = r.size(1, 80), n = r.size(1, 150), k = r.size(1, 90);
      if (round >= 16) k = 2 * k + 40;
      if (round >= 20) k += 2100;  // several k blocks
      Case c = plain_case(r, m, n, k, ta, tb, DType::BF16);
      c.desc.a.dtype = types[round / 4 % 2];
      c.desc.b.dtype = types[round / 8 % 2];
      c.desc.outputs[0].dtype = DType::F32;
      c.buffers = {Buffer(m * k, c.desc.a.dtype), Buffer(k * n, c.desc.b.dtype),
                   Buffer(m * n, DType::F32)};
      for (Buffer& b : c.buffers) b.fill(r);
      launch(lib, c);
      for (int x : {0, 1})
        for (int64_t i = 0; i < (x ? k * n : m * k); ++i)
          c.buffers[x].set(
              i, bf16_to_f32(f32_to_bf16(float(c.buffers[x].get(i)))));
      CAPTURE(t.level);
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(k);
      CAPTURE(round);
      CHECK(plain_error(c, c.buffers[2]) < 3e-5);
      for (Buffer& b : c.buffers) CHECK(b.guards_intact());
    }
  }
}

TEST_CASE("batches broadcast, strides are free") {
  // out[b, h] = q[b, :, h, :] k[b, :, h/2, :]^T, as attention with two heads
  // sharing one key head, straight from [B, S, H, D]
  const int64_t B = 2, S = 21, H = 4, D = 10, G = 2;
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    Random r{3};
    Case c;
    c.buffers = {Buffer(B * S * H * D, DType::F32),
                 Buffer(B * S * (H / G) * D, DType::F32),
                 Buffer(B * H * S * S, DType::F32)};
    for (Buffer& b : c.buffers) b.fill(r);
    MatmulDesc& d = c.desc;
    d.m = S, d.n = S, d.k = D, d.batch = {B, H / G, G};
    d.a = {.buffer = 0, .row_stride = H * D, .col_stride = 1};
    d.a.batch_strides = {S * H * D, G * D, D};
    d.b = {.buffer = 1, .row_stride = 1, .col_stride = (H / G) * D};
    d.b.batch_strides = {S * (H / G) * D, D, 0};
    d.outputs[0] = {.buffer = 2, .row_stride = S, .col_stride = 1};
    d.outputs[0].batch_strides = {H * S * S, G * S * S, S * S};
    launch(lib, c);
    double worst = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t i = 0; i < S; ++i)
          for (int64_t j = 0; j < S; ++j) {
            double sum = 0;
            for (int64_t x = 0; x < D; ++x)
              sum += c.buffers[0].get(((b * S + i) * H + h) * D + x) *
                     c.buffers[1].get(((b * S + j) * (H / G) + h / G) * D + x);
            worst = std::max(
                worst,
                error_of(c.buffers[2].get(((b * H + h) * S + i) * S + j), sum));
          }
    CAPTURE(t.level);
    CHECK(worst < 1e-5);
  }
}

TEST_CASE("epilogues see extras, several outputs, strided outputs") {
  const int64_t m = 37, n = 45, k = 19;
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    Random r{5};
    Case c = plain_case(r, m, n, k, false, true);
    c.buffers.emplace_back(n, DType::F32);      // bias
    c.buffers.emplace_back(m, DType::F32);      // a factor per row
    c.buffers.emplace_back(m * n, DType::F32);  // second output, transposed
    for (int i : {3, 4}) c.buffers[i].fill(r);
    MatmulDesc& d = c.desc;
    d.extras = {{.buffer = 3, .row_stride = 0, .col_stride = 1},
                {.buffer = 4, .row_stride = 1, .col_stride = 0}};
    d.outputs.push_back({.buffer = 5, .row_stride = 1, .col_stride = m});
    d.epilogue_key = "(acc + bias) * row, tanh";
    d.epilogue = [](Emit& e, V acc, std::span<const V> x) {
      V y = e.mul(e.add(acc, x[0]), x[1]);
      return Vs{y, e.tanh(y)};
    };
    launch(lib, c);
    double worst = 0;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double y = 0;
        for (int64_t x = 0; x < k; ++x)
          y += c.buffers[0].get(i * k + x) * c.buffers[1].get(j * k + x);
        y = (y + c.buffers[3].get(j)) * c.buffers[4].get(i);
        worst = std::max(worst, error_of(c.buffers[2].get(i * n + j), y));
        worst = std::max(worst,
                         error_of(c.buffers[5].get(j * m + i), std::tanh(y)));
      }
    CAPTURE(t.level);
    CHECK(worst < 1e-5);
    for (Buffer& b : c.buffers) CHECK(b.guards_intact());
  }
}

std::vector<int32_t> offsets_of(const std::vector<int>& counts) {
  std::vector<int32_t> o{0};
  for (int n : counts) o.push_back(o.back() + n);
  return o;
}

TEST_CASE("rows and reductions grouped by expert, empty experts") {
  const int64_t n = 35, k = 50;
  const std::vector<int> counts{0, 13, 0, 260, 1, 0, 30, 0};
  const int64_t E = int64_t(counts.size());
  const auto offsets = offsets_of(counts);
  const int64_t used = offsets.back(), S = used + 5;  // 5 unrouted rows
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    CAPTURE(t.level);
    for (bool transposed : {true, false}) {
      Random r{11};
      Case c = plain_case(r, S, n, k, false, transposed);
      c.buffers[1] = Buffer(E * n * k, DType::F32);
      c.buffers[1].fill(r);
      c.offsets = offsets;
      c.desc.group = MatmulGroup::Rows;
      c.desc.experts = E;
      c.desc.offsets_buffer = 3;
      c.desc.b.group_stride = n * k;
      Buffer before = c.buffers[2];
      launch(lib, c);
      double worst = 0;
      for (int64_t e = 0; e < E; ++e)
        for (int64_t i = offsets[e]; i < offsets[e + 1]; ++i)
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t x = 0; x < k; ++x)
              sum += c.buffers[0].get(i * k + x) *
                     c.buffers[1].get(e * n * k +
                                      (transposed ? j * k + x : x * n + j));
            worst = std::max(worst, error_of(c.buffers[2].get(i * n + j), sum));
          }
      CHECK(worst < 1e-5);
      for (int64_t i = used * n; i < S * n; ++i)
        REQUIRE(c.buffers[2].get(i) == before.get(i));
    }
    // dW[e] = dY^T X over the expert's rows
    for (DType dtype : {DType::F32, DType::BF16}) {
      Random r{12};
      Case c;
      const int64_t out = 35, in = 21;
      c.desc = plain_matmul(out, in, S, true, false);
      c.buffers = {Buffer(S * out, dtype), Buffer(S * in, dtype),
                   Buffer(E * out * in, DType::F32)};
      c.desc.a.dtype = c.desc.b.dtype = dtype;
      c.desc.bf16 = dtype == DType::BF16;
      for (Buffer& b : c.buffers) b.fill(r);
      c.offsets = offsets;
      c.desc.group = MatmulGroup::Reduction;
      c.desc.experts = E;
      c.desc.offsets_buffer = 3;
      c.desc.outputs[0].group_stride = out * in;
      launch(lib, c);
      double worst = 0;
      for (int64_t e = 0; e < E; ++e)
        for (int64_t i = 0; i < out; ++i)
          for (int64_t j = 0; j < in; ++j) {
            double sum = 0;
            for (int64_t s = offsets[e]; s < offsets[e + 1]; ++s)
              sum +=
                  c.buffers[0].get(s * out + i) * c.buffers[1].get(s * in + j);
            worst = std::max(
                worst, error_of(c.buffers[2].get((e * out + i) * in + j), sum));
          }
      CHECK(worst < 1e-5);
      for (Buffer& b : c.buffers) CHECK(b.guards_intact());
    }
  }
}

TEST_CASE("the same bits for any thread count and any place of a row") {
  for (const Target& t : test_targets()) {
    KernelLibrary lib(t, "");
    CAPTURE(t.level);
    Random r{13};
    Case c = plain_case(r, 150, 90, 1200, false, true);
    launch(lib, c, 1);
    auto one = c.buffers[2].bytes;
    for (int threads : {2, 3}) {
      c.buffers[2].fill(r);
      launch(lib, c, threads);
      CHECK(c.buffers[2].bytes == one);
    }
    // row 70 alone, as row 0 of a product of 3 rows, and by an expert
    auto row_of = [&](Case& x, int64_t i) {
      return std::vector<std::byte>(x.buffers[2].data() + i * 90 * 4,
                                    x.buffers[2].data() + (i + 1) * 90 * 4);
    };
    auto want = row_of(c, 70);
    for (int64_t rows : {1, 3, 21}) {
      Case s = c;
      s.desc.m = rows;
      s.desc.a.offset = 70 * 1200;
      launch(lib, s);
      CHECK(row_of(s, 0) == want);
    }
    Case g = c;
    g.desc.group = MatmulGroup::Rows;
    g.desc.experts = 3;
    g.desc.offsets_buffer = 3;
    g.offsets = {0, 69, 72, 150};
    launch(lib, g);
    CHECK(g.buffers[2].bytes == one);
  }
}

}  // namespace
}  // namespace moec
