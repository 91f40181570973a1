#include "support/hash.h"

#define XXH_INLINE_ALL
#include <fmt/core.h>
#include <xxhash.h>

namespace moec {
namespace {

static_assert(sizeof(XXH3_state_t) <= 576 && alignof(XXH3_state_t) <= 64);

XXH3_state_t* state(std::byte* p) { return reinterpret_cast<XXH3_state_t*>(p); }

Hash128 from(XXH128_hash_t h) { return {h.high64, h.low64}; }

}  // namespace

std::string Hash128::hex() const {
  return fmt::format("{:016x}{:016x}", hi, lo);
}

Hash128 hash_bytes(std::span<const std::byte> data) {
  return from(XXH3_128bits(data.data(), data.size()));
}

Hash128 hash_text(std::string_view text) {
  return hash_bytes(std::as_bytes(std::span(text)));
}

Hasher::Hasher() { XXH3_128bits_reset(state(state_)); }

void Hasher::bytes(std::span<const std::byte> data) {
  XXH3_128bits_update(state(state_), data.data(), data.size());
}

void Hasher::text(std::string_view text) {
  value(uint64_t(text.size()));
  bytes(std::as_bytes(std::span(text)));
}

Hash128 Hasher::digest() const {
  return from(
      XXH3_128bits_digest(reinterpret_cast<const XXH3_state_t*>(state_)));
}

}  // namespace moec
