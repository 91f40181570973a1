#include "support/hash.h"

#include "tests/test.h"

using namespace moec;

TEST_CASE("hash: published values, pieces, order") {
  // XXH3_128bits of nothing, as the xxHash specification lists it.
  CHECK(hash_text("").hex() == "99aa06d3014798d86001c324468d497f");
  std::string text(100000, 'x');
  for (size_t i = 0; i < text.size(); ++i) text[i] = char(i * 31 % 251);
  Hasher h;
  auto all = std::as_bytes(std::span(text));
  h.bytes(all.subspan(0, 777));
  h.bytes(all.subspan(777));
  CHECK(h.digest() == hash_text(text));
  Hasher a, b;
  a.text("ab"), a.text("c");
  b.text("a"), b.text("bc");
  CHECK(a.digest() != b.digest());
}
