// 128-bit XXH3 of bytes: keys of caches and checks of files. Not for secrets.
#pragma once
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace moec {

struct Hash128 {
  uint64_t hi = 0, lo = 0;
  // 32 lower-case hex digits, the high half first.
  std::string hex() const;
  auto operator<=>(const Hash128&) const = default;
};

Hash128 hash_bytes(std::span<const std::byte> data);
Hash128 hash_text(std::string_view text);

// The same hash over bytes that come in pieces; the cuts do not matter.
class Hasher {
 public:
  Hasher();
  void bytes(std::span<const std::byte> data);
  // Length first, so that ("ab","c") and ("a","bc") differ.
  void text(std::string_view text);
  template <class T>
    requires(std::is_integral_v<T> || std::is_enum_v<T> ||
             std::is_floating_point_v<T>)
  void value(T v) {
    bytes(std::as_bytes(std::span(&v, 1)));
  }
  Hash128 digest() const;

 private:
  // Holds an XXH3_state_t, kept out of this header.
  alignas(64) std::byte state_[576];
};

}  // namespace moec

template <>
struct std::hash<moec::Hash128> {
  size_t operator()(const moec::Hash128& h) const { return size_t(h.lo); }
};
