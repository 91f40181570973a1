// Counter-based random numbers: every value is a pure function of (key,
// stream, index), so results never depend on threads, order or restarts.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy
// as 1, 2, 3", SC 2011). Code generators emit these same functions; keep them
// small and without tables.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>

namespace moec {

using PhiloxBlock = std::array<uint32_t, 4>;

// 10 rounds on the 128-bit counter (word 0 lowest) with a 64-bit key.
constexpr PhiloxBlock philox4x32(uint64_t key, PhiloxBlock c) {
  auto k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t(0xD2511F53u) * c[0];
    uint64_t b = uint64_t(0xCD9E8D57u) * c[2];
    c = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b),
         uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Random word of element `index` (>= 0) of the tensor `stream`. Elements come
// in tiles of 64: tile t takes the 16 blocks 16t .. 16t+15, and element
// 64t + 16w + l is word w of block 16t + l. A vector of 8 or 16 lanes that
// runs Philox on consecutive counters so holds consecutive elements.
// Counter words: block low, block high, stream low, stream high.
constexpr uint32_t random_word(uint64_t key, uint64_t stream, int64_t index) {
  auto i = uint64_t(index);
  uint64_t block = i / 64 * 16 + i % 16;
  return philox4x32(key,
                    {uint32_t(block), uint32_t(block >> 32), uint32_t(stream),
                     uint32_t(stream >> 32)})[i / 16 % 4];
}

// Uniform in (0, 1) from a word: (2k + 1) / 2^24 of its top 23 bits; exact in
// f32, never 0 or 1, symmetric about 1/2.
template <class T = float>
constexpr T uniform_from_word(uint32_t w) {
  return T(2 * (w >> 9) + 1) * T(0x1p-24);
}

// Standard normal from a word: sqrt(2) * erfinv(2u - 1) with M. Giles'
// single-precision polynomials ("Approximating the erfinv function", GPU
// Computing Gems, 2010). |result| < 5.3; relative error about 1e-6.
template <class T = float>
T normal_from_word(uint32_t w) {
  T x = T(2) * uniform_from_word<T>(w) - T(1);  // exact
  T y = -std::log((T(1) - x) * (T(1) + x));
  constexpr float kNear[9] = {
      2.81022636e-08f,  3.43273939e-07f, -3.5233877e-06f,
      -4.39150654e-06f, 0.00021858087f,  -0.00125372503f,
      -0.00417768164f,  0.246640727f,    1.50140941f};
  constexpr float kFar[9] = {-0.000200214257f, 0.000100950558f, 0.00134934322f,
                             -0.00367342844f,  0.00573950773f,  -0.0076224613f,
                             0.00943887047f,   1.00167406f,     2.83297682f};
  bool near = y < T(5);
  const float* c = near ? kNear : kFar;
  T z = near ? y - T(2.5) : std::sqrt(y) - T(3);
  T p = T(c[0]);
  for (int i = 1; i < 9; ++i) p = p * z + T(c[i]);
  return T(1.41421356237309504880) * p * x;
}

// Dropout with probability p in [0, 1) drops an element iff its word is below
// this: p * 2^32 rounded to nearest, at most 2^32 - 1.
inline uint32_t dropout_threshold(double p) {
  double t = std::nearbyint(p * 0x1p32);
  return t >= 0x1p32 ? 0xffffffffu : t <= 0 ? 0u : uint32_t(t);
}

}  // namespace moec
