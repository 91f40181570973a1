// Memory, vectors, conversions and control flow of the emitter facade.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/codegen/harness.h"
#include "tests/test.h"

namespace moec {
namespace {

TEST_CASE("masked tails touch nothing outside") {
  for (const Target& t : test_targets()) {
    for (DType d : {DType::F32, DType::BF16, DType::F16, DType::F64}) {
      CAPTURE(t.level);
      CAPTURE(dtype_name(d));
      const int L = t.lanes, n = L + 3;
      const size_t bytes = 2 * L * dtype_size(d);
      std::vector<uint8_t> src(bytes), dst(bytes, 0xee);
      for (size_t k = 0; k < bytes; ++k) src[k] = uint8_t(k % 60);
      run_kernel(t,
                 [&](Emit& e) {
                   e.loop(e.i(0), e.i(n), L, [&](V k) {
                     V m = e.mask(e.sub(e.i(n), k));
                     V p = e.at(e.buffer(0), k, dtype_size(d));
                     V q = e.at(e.buffer(1), k, dtype_size(d));
                     e.vstore(d, e.vload(d, p, m), q, m);
                   });
                 },
                 {src.data(), dst.data()});
      const size_t live = n * dtype_size(d);
      CHECK(std::equal(src.begin(), src.begin() + live, dst.begin()));
      for (size_t k = live; k < bytes; ++k) CHECK(dst[k] == 0xee);
    }
  }
}

TEST_CASE("bf16 and f16 round as the scalar conversions do") {
  std::vector<float> in;
  for (uint32_t e = 90; e < 160; ++e)
    for (uint32_t m : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0x18000u, 0xfffu,
                       0x1000u, 0x1001u, 0x3000u, 0x7fffffu, 0x400000u}) {
      uint32_t b = (e << 23) | m;
      float x;
      std::memcpy(&x, &b, 4);
      in.push_back(x), in.push_back(-x);
    }
  in.push_back(0), in.push_back(INFINITY), in.push_back(-INFINITY);
  in.push_back(NAN);
  while (in.size() % 16) in.push_back(1);
  for (const Target& t : test_targets()) {
    CAPTURE(t.level);
    for (DType d : {DType::BF16, DType::F16}) {
      std::vector<uint16_t> out(in.size());
      std::vector<float> back(in.size());
      run_kernel(t,
                 [&](Emit& e) {
                   e.loop(e.i(0), e.i(int64_t(in.size())), e.lanes(), [&](V k) {
                     V x = e.vload(DType::F32, e.at(e.buffer(0), k));
                     e.vstore(d, x, e.at(e.buffer(1), k, 2));
                     e.vstore(DType::F32, e.cast(x, DType::F32, d),
                              e.at(e.buffer(2), k));
                   });
                 },
                 {in.data(), out.data(), back.data()});
      for (size_t k = 0; k < in.size(); ++k) {
        uint16_t want =
            d == DType::BF16 ? f32_to_bf16(in[k]) : f32_to_f16(in[k]);
        CAPTURE(in[k]);
        if (std::isnan(in[k])) {
          CHECK(std::isnan(back[k]));
        } else {
          CHECK(out[k] == want);
          CHECK(back[k] ==
                (d == DType::BF16 ? bf16_to_f32(want) : f16_to_f32(want)));
        }
      }
    }
  }
}

TEST_CASE("casts saturate, integers wrap, mulhi") {
  for (const Target& t : test_targets()) {
    CAPTURE(t.level);
    const int L = t.lanes;
    std::vector<float> in(L, 3e9f);
    in[1] = -3e9f, in[2] = NAN, in[3] = -7.9f;
    std::vector<int32_t> out(L);
    std::vector<uint32_t> a(L), hi(L);
    for (int k = 0; k < L; ++k) a[k] = 0x9e3779b9u * (k + 1);
    run_kernel(
        t,
        [&](Emit& e) {
          V x = e.vload(DType::F32, e.buffer(0));
          e.vstore(DType::I32, e.cast(x, DType::F32, DType::I32), e.buffer(1));
          V u = e.vload(DType::U32, e.buffer(2));
          e.vstore(DType::U32, e.mulhi_u32(u, e.i32(0xD2511F53)), e.buffer(3));
        },
        {in.data(), out.data(), a.data(), hi.data()});
    CHECK(out[0] == INT32_MAX);
    CHECK(out[1] == INT32_MIN);
    CHECK(out[2] == 0);
    CHECK(out[3] == -7);
    for (int k = 0; k < L; ++k)
      CHECK(hi[k] == uint32_t((uint64_t(a[k]) * 0xD2511F53) >> 32));
  }
}

TEST_CASE("transpose, strided access, reductions, branches, calls") {
  for (const Target& t : test_targets()) {
    CAPTURE(t.level);
    const int L = t.lanes;
    std::vector<float> in(L * L), tr(L * L), st(L * L, -1), red(4);
    std::iota(in.begin(), in.end(), 0.f);
    run_kernel(
        t,
        [&](Emit& e) {
          Vs rows;
          for (int r = 0; r < L; ++r)
            rows.push_back(e.vload(DType::F32, e.at(e.buffer(0), r * L)));
          Vs cols = e.transpose(rows);
          for (int r = 0; r < L; ++r)
            e.vstore(DType::F32, cols[r], e.at(e.buffer(1), r * L));
          V m = e.mask(e.i(L - 1));
          V col = e.vload_strided(DType::F32, e.at(e.buffer(0), 2), e.i(L), m);
          e.vstore_strided(DType::F32, col, e.at(e.buffer(2), 1), e.i(L), m);
          e.store(DType::F32, e.hsum(rows[1]), e.buffer(3));
          e.store(DType::F32, e.hmax(rows[1]), e.at(e.buffer(3), 1));
          Fn f = e.define("twice", {Ty::Ptr, Ty::F32}, [&](const Vs& a) {
            e.store(DType::F32, e.add(a[1], a[1]), a[0]);
          });
          e.call(f, {e.at(e.buffer(3), 2), e.f(21)});
          // 1 + 2 + 4 + ... while below 100, and a branch with values
          Vs w = e.while_(
              {e.i(0), e.i(1)},
              [&](const Vs& c) { return e.lt(c[0], e.i(100)); },
              [&](Vs c) { return Vs{e.add(c[0], c[1]), e.mul(c[1], 2)}; });
          V r = e.if_values(
              e.gt(w[0], e.i(126)), [&] { return Vs{e.f(1)}; },
              [&] { return Vs{e.f(2)}; })[0];
          e.store(DType::F32, r, e.at(e.buffer(3), 3));
        },
        {in.data(), tr.data(), st.data(), red.data()});
    for (int r = 0; r < L; ++r)
      for (int c = 0; c < L; ++c) CHECK(tr[r * L + c] == in[c * L + r]);
    for (int r = 0; r < L - 1; ++r) CHECK(st[r * L + 1] == in[r * L + 2]);
    CHECK(st[(L - 1) * L + 1] == -1);
    CHECK(red[0] == L * L + L * (L - 1) / 2);
    CHECK(red[1] == 2 * L - 1);
    CHECK(red[2] == 42);
    CHECK(red[3] == 1);  // the sum stops at 127
  }
}

TEST_CASE("bf16 dot") {
  for (const Target& t : test_targets()) {
    CAPTURE(t.level);
    const int L = t.lanes;
    std::vector<float> x(2 * L), y(2 * L), out(L);
    for (int k = 0; k < 2 * L; ++k) x[k] = float(k - 7), y[k] = 0.5f * (k % 5);
    run_kernel(t,
               [&](Emit& e) {
                 auto pair = [&](V p) {
                   return e.pack_bf16_pair(e.vload(DType::F32, p),
                                           e.vload(DType::F32, e.at(p, L)));
                 };
                 V acc = e.dpbf16(e.splat(e.f(1)), pair(e.buffer(0)),
                                  pair(e.buffer(1)));
                 e.vstore(DType::F32, acc, e.buffer(2));
               },
               {x.data(), y.data(), out.data()});
    for (int k = 0; k < L; ++k)
      CHECK(out[k] == 1 + x[k] * y[k] + x[k + L] * y[k + L]);
  }
}

TEST_CASE("tiles multiply bf16 pairs, in shapes smaller than the registers") {
  for (const Target& t : test_targets()) {
    if (!t.amx_bf16) continue;
    const int rows = 5, columns = 7, pairs = 3;
    std::vector<uint16_t> a(rows * pairs * 2), b(pairs * columns * 2);
    // small integers are exact in bf16: the upper half of their f32
    auto bf16 = [](float v) {
      return uint16_t(std::bit_cast<uint32_t>(v) >> 16);
    };
    std::vector<float> fa, fb, out(rows * columns + 1, 77);
    for (size_t k = 0; k < a.size(); ++k)
      fa.push_back(float(k % 11) - 4), a[k] = bf16(fa.back());
    for (size_t k = 0; k < b.size(); ++k)
      fb.push_back(float(k % 5) - 1), b[k] = bf16(fb.back());
    run_kernel(
        t,
        [&](Emit& e) {
          e.tile_config(
              {{rows, columns * 4}, {rows, pairs * 4}, {pairs, columns * 4}});
          e.tile_load(1, e.buffer(0), e.i(pairs * 4));
          e.tile_load_stream(2, e.buffer(1), e.i(columns * 4));
          e.tile_zero(0);
          e.loop(e.i(0), e.i(2), 1, [&](V) { e.tile_dpbf16(0, 1, 2); });
          e.tile_store(0, e.buffer(2), e.i(columns * 4));
          e.tile_release();
        },
        {a.data(), b.data(), out.data()});
    for (int m = 0; m < rows; ++m)
      for (int n = 0; n < columns; ++n) {
        float want = 0;
        for (int k = 0; k < pairs; ++k)
          for (int h = 0; h < 2; ++h)
            want +=
                2 * fa[(m * pairs + k) * 2 + h] * fb[(k * columns + n) * 2 + h];
        CHECK(out[m * columns + n] == want);
      }
    CHECK(out.back() == 77);
  }
}

}  // namespace
}  // namespace moec
