#include "support/rng.h"

#include <cmath>
#include <set>

#include "tests/test.h"

using namespace moec;

// Known answers of the authors' Random123 distribution, file kat_vectors.
TEST_CASE("philox4x32-10 known answers") {
  CHECK(philox4x32(0, {0, 0, 0, 0}) ==
        PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32(~0ull, {~0u, ~0u, ~0u, ~0u}) ==
        PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32(0x299f31d0a4093822ull,
                   {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}) ==
        PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random_word: tiles of 64, four words of 16 blocks") {
  for (int64_t i : {0, 15, 16, 63, 64, 100, 1000}) {
    uint32_t block = uint32_t(i / 64 * 16 + i % 16);
    CHECK(random_word(7, 5, i) ==
          philox4x32(7, {block, 0, 5, 0})[size_t(i / 16 % 4)]);
  }
  std::set<uint32_t> seen;
  for (int64_t i = 0; i < 4096; ++i) seen.insert(random_word(1, 2, i));
  CHECK(seen.size() >= 4095);
}

TEST_CASE("uniform and normal: range, moments and tails") {
  CHECK(uniform_from_word(0) == 0x1p-24f);
  CHECK(uniform_from_word(0xffffffff) == 1 - 0x1p-24f);
  double n = 200000, m = 0, v = 0, beyond = 0;
  for (int64_t i = 0; i < int64_t(n); ++i) {
    uint32_t w = random_word(3, 9, i);
    float x = normal_from_word(w);
    CHECK(std::fabs(x - normal_from_word<double>(w)) < 1e-5);
    m += x;
    v += double(x) * x;
    beyond += std::fabs(x) > 1.959964;
  }
  CHECK(std::fabs(m / n) < 4 / std::sqrt(n));
  CHECK(std::fabs(v / n - 1) < 4 * std::sqrt(2 / n));
  CHECK(std::fabs(beyond / n - 0.05) < 4 * std::sqrt(0.05 * 0.95 / n));
  CHECK(normal_from_word(0) == -normal_from_word(0xffffffff));
  CHECK(normal_from_word(0xffffffff) == doctest::Approx(5.2947).epsilon(1e-3));
}

TEST_CASE("dropout threshold") {
  CHECK(dropout_threshold(0) == 0);
  CHECK(dropout_threshold(0.5) == 0x80000000u);
  CHECK(dropout_threshold(1) == 0xffffffffu);
}
