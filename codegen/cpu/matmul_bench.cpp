#include "codegen/cpu/matmul_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "codegen/cpu/jit.h"
#include "codegen/cpu/matmul.h"

namespace moec {

namespace {

MatmulDesc describe(const MatmulShape& s) {
  MatmulDesc d = plain_matmul(s.m, s.n, s.k, s.trans_a, s.trans_b,
                              s.bf16 ? DType::BF16 : DType::F32);
  if (s.batch > 1) {
    d.batch = {s.batch};
    d.a.batch_strides = {s.m * s.k};
    d.b.batch_strides = {s.k * s.n};
    d.outputs[0].batch_strides = {s.m * s.n};
  }
  if (s.experts) {
    d.experts = s.experts;
    d.offsets_buffer = 3;
    d.group = s.trans_a ? MatmulGroup::Reduction : MatmulGroup::Rows;
    (s.trans_a ? d.outputs[0] : d.b).group_stride =
        s.trans_a ? s.m * s.n : s.n * s.k;
  }
  return d;
}

// Small values of both signs in the dtype.
Buffer filled(int64_t elements, bool bf16) {
  Buffer v = bench_buffer(elements * (bf16 ? 2 : 4) + 64);
  uint32_t x = 12345;
  for (int64_t k = 0; k < elements; ++k) {
    x = x * 1664525 + 1013904223;
    float f = float(int32_t(x) >> 8) * 1e-7f;
    uint16_t h = f32_to_bf16(f);
    if (bf16)
      std::memcpy(v.data() + 2 * k, &h, 2);
    else
      std::memcpy(v.data() + 4 * k, &f, 4);
  }
  return v;
}

}  // namespace

std::string matmul_name(const MatmulShape& s) {
  std::string n = fmt::format("{}x{}x{} {}{}", s.m, s.n, s.k,
                              s.trans_a ? 'T' : 'N', s.trans_b ? 'T' : 'N');
  if (s.batch > 1) n += fmt::format(" *{}", s.batch);
  if (s.experts) n += fmt::format(" E{}", s.experts);
  return n + (s.bf16 ? " bf16" : "");
}

std::vector<MatmulShape> bench_matmul_shapes(bool bf16) {
  std::vector<MatmulShape> all;
  auto add = [&](int64_t m, int64_t n, int64_t k, bool every_form = true) {
    all.push_back({m, n, k, false, true});
    if (!every_form) return;
    all.push_back({m, n, k});
    all.push_back({m, n, k, true, false});
  };
  add(512, 512, 512);
  add(2048, 3072, 768);
  add(2048, 768, 3072);
  add(1000, 1000, 1000);
  add(128, 128, 128);
  add(4096, 128, 128);
  add(4096, 512, 128);
  all.push_back({128, 128, 4096, true, false});
  all.push_back({384, 384, 2048, true, false});
  add(64, 64, 64);
  add(65, 33, 64, false);
  add(1, 3072, 768, false);
  add(8, 3072, 768, false);
  all.push_back({64, 64, 64, false, true, 64});
  for (int64_t experts : {8, 32}) {
    all.push_back({4096, 512, 256, false, true, 1, experts});
    all.push_back({4096, 256, 512, false, false, 1, experts});
    all.push_back({512, 256, 4096, true, false, 1, experts});
  }
  for (auto& s : all) s.bf16 = bf16;
  return all;
}

BenchRow bench_matmul(KernelLibrary& lib, const MatmulShape& s,
                      double seconds) {
  const MatmulDesc d = describe(s);
  const int64_t groups = std::max<int64_t>(s.experts, 1);
  Buffer a = filled(s.m * s.k * s.batch, s.bf16);
  Buffer b = filled(s.k * s.n * s.batch * (s.trans_a ? 1 : groups), s.bf16);
  Buffer c = filled(s.m * s.n * s.batch * (s.trans_a ? groups : 1), s.bf16);
  std::vector<int32_t> offsets(groups + 1);
  const int64_t rows = s.trans_a ? s.k : s.m;
  for (int64_t e = 0; e <= groups; ++e) offsets[e] = int32_t(rows * e / groups);
  MatmulKernels k = matmul_kernels(d, lib.target(), 4);
  Buffer workspace = bench_buffer(k.workspace_bytes + 64);
  std::vector<BoundLaunch> launches;
  for (KernelSpec& spec : k.launches)
    launches.push_back(
        {std::move(spec),
         {a.data(), b.data(), c.data(),
          reinterpret_cast<std::byte*>(offsets.data()), workspace.data()}});
  return time_launches(lib, matmul_name(s), launches, s.bf16, seconds);
}

}  // namespace moec
