// Short pieces as 16-byte keys of hash tables.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moec::bpe {

inline constexpr size_t kShortPiece = 15;

// A piece of at most 15 bytes; the last byte is its length.
struct Key {
  uint64_t low, high;
  bool operator==(const Key&) const = default;
  size_t length() const { return high >> 56; }
};

struct KeyMasks {
  Key of[kShortPiece + 1];
};

inline constexpr KeyMasks kKeyMasks = [] {
  KeyMasks m{};
  for (size_t n = 0; n <= kShortPiece; ++n) {
    m.of[n].low = n >= 8 ? ~uint64_t(0) : (uint64_t(1) << 8 * n) - 1;
    m.of[n].high = n <= 8 ? 0 : (uint64_t(1) << 8 * (n - 8)) - 1;
  }
  return m;
}();

// n <= kShortPiece; p[0..15] must be readable.
inline Key make_key(const uint8_t* p, size_t n) {
  Key k;
  std::memcpy(&k, p, 16);
  k.low &= kKeyMasks.of[n].low;
  k.high = (k.high & kKeyMasks.of[n].high) | uint64_t(n) << 56;
  return k;
}

// Where p[n..15] may not be read.
inline Key make_key_at_end(const uint8_t* p, size_t n) {
  uint8_t padded[16] = {};
  std::memcpy(padded, p, n);
  return make_key(padded, n);
}

inline uint64_t fold(uint64_t a, uint64_t b) {
  auto m = static_cast<unsigned __int128>(a) * b;
  return uint64_t(m) ^ uint64_t(m >> 64);
}

inline uint64_t hash_key(Key k) {
  return fold(k.low ^ 0xA0761D6478BD642F, k.high ^ 0xE7037ED1A0B428DB);
}

// Of a piece of 16 bytes or more; never 0.
inline uint64_t hash_long(const uint8_t* p, size_t n) {
  uint64_t h = n * 0x9E3779B97F4A7C15u;
  auto mix = [&](const uint8_t* q) {
    uint64_t a, b;
    std::memcpy(&a, q, 8);
    std::memcpy(&b, q + 8, 8);
    h = fold(a ^ h, b ^ 0xE7037ED1A0B428DB);
  };
  for (size_t i = 0; i + 16 <= n; i += 16) mix(p + i);
  if (n % 16) mix(p + n - 16);
  return h | 1;
}

}  // namespace moec::bpe
