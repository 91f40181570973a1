#include "support/dtype.h"

#include <array>
#include <bit>
#include <cmath>

namespace moec {
namespace {

constexpr std::array<std::string_view, kNumDTypes> kNames = {
    "f64", "f32", "bf16", "f16", "i32", "i64", "u32", "bool"};
constexpr std::array<int64_t, kNumDTypes> kSizes = {8, 4, 2, 2, 4, 8, 4, 1};

}  // namespace

std::string_view dtype_name(DType t) { return kNames[int(t)]; }

std::optional<DType> parse_dtype(std::string_view s) {
  for (int i = 0; i < kNumDTypes; ++i)
    if (kNames[i] == s) return DType(i);
  return std::nullopt;
}

int64_t dtype_size(DType t) { return kSizes[int(t)]; }

bool is_float(DType t) { return t <= DType::F16; }

uint16_t f32_to_bf16(float x) {
  auto u = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return uint16_t(u >> 16) | 0x40;
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float bf16_to_f32(uint16_t x) {
  return std::bit_cast<float>(uint32_t(x) << 16);
}

uint16_t f32_to_f16(float x) {
  auto u = std::bit_cast<uint32_t>(x);
  uint16_t sign = uint16_t(u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) return sign | 0x7e00;
  if (u >= 0x47800000) return sign | 0x7c00;
  if (u < 0x38800000) {  // subnormal or zero
    float magic = std::bit_cast<float>(uint32_t(126) << 23);
    return sign |
           uint16_t(std::bit_cast<uint32_t>(std::bit_cast<float>(u) + magic) -
                    std::bit_cast<uint32_t>(magic));
  }
  u += (uint32_t(15 - 127) << 23) + 0xfff + ((u >> 13) & 1);
  return sign | uint16_t(u >> 13);
}

float f16_to_f32(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
  if (e == 31) return std::bit_cast<float>(sign | 0x7f800000 | (m << 13));
  if (e == 0) {
    float f = std::ldexp(float(m), -24);
    return sign ? -f : f;
  }
  return std::bit_cast<float>(sign | ((e + 112) << 23) | (m << 13));
}

}  // namespace moec
