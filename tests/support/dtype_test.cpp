#include "support/dtype.h"

#include <bit>
#include <cmath>
#include <limits>

#include "tests/test.h"

using namespace moec;

TEST_CASE("dtype: names and sizes round-trip") {
  for (int i = 0; i < kNumDTypes; ++i)
    CHECK(parse_dtype(dtype_name(DType(i))) == DType(i));
  CHECK(!parse_dtype("f33"));
  CHECK(dtype_size(DType::BF16) == 2);
  CHECK(is_float(DType::F16));
  CHECK(!is_float(DType::I32));
}

TEST_CASE("f16 against the compiler's own conversion, every value") {
  for (uint32_t b = 0; b < 65536; ++b) {
    float x = float(std::bit_cast<_Float16>(uint16_t(b)));
    float y = f16_to_f32(uint16_t(b));
    if (std::isnan(x)) {
      CHECK(std::isnan(y));
      continue;
    }
    REQUIRE(x == y);
    REQUIRE(f32_to_f16(x) == b);
    // Between this value and the next: halves, and a little off them.
    for (float t : {0.25f, 0.5f, 0.50001f, 0.75f}) {
      float next = float(std::bit_cast<_Float16>(uint16_t(b + 1)));
      if (!std::isfinite(next) || !std::isfinite(x)) continue;
      float v = x + t * (next - x);
      REQUIRE(f32_to_f16(v) == std::bit_cast<uint16_t>(_Float16(v)));
    }
  }
  for (float big : {65519.f, 65520.f, 1e30f})
    CHECK(f32_to_f16(big) == std::bit_cast<uint16_t>(_Float16(big)));
}

TEST_CASE("bf16: round to nearest even, NaN stays NaN") {
  CHECK(f32_to_bf16(1.0f) == 0x3f80);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808000u)) == 0x3f80);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f818000u)) == 0x3f82);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808001u)) == 0x3f81);
  CHECK(std::isinf(bf16_to_f32(f32_to_bf16(3.4e38f))));
  float nan = std::bit_cast<float>(0x7f800001u);
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(nan))));
}
