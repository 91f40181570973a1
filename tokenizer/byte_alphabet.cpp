#include "tokenizer/byte_alphabet.h"

#include "tokenizer/utf8.h"

namespace moec::bpe {
namespace {

struct Maps {
  std::array<uint16_t, 256> to_char;
  std::array<int16_t, 0x144> to_byte;
  std::array<uint8_t, 256> order;
};

Maps make_maps() {
  Maps m;
  m.to_byte.fill(-1);
  int extra = 0, n = 0;
  auto printable = [](int b) {
    return (b >= 33 && b < 127) || (b >= 161 && b < 173) || b >= 174;
  };
  for (int b = 0; b < 256; ++b) {
    m.to_char[b] = uint16_t(printable(b) ? b : 0x100 + extra++);
    m.to_byte[m.to_char[b]] = int16_t(b);
  }
  for (int16_t b : m.to_byte)
    if (b >= 0) m.order[n++] = uint8_t(b);
  return m;
}

const Maps& maps() {
  static const Maps m = make_maps();
  return m;
}

}  // namespace

const std::array<uint16_t, 256>& byte_to_char() { return maps().to_char; }
const std::array<uint8_t, 256>& alphabet_order() { return maps().order; }

std::string to_alphabet(std::string_view bytes) {
  std::string out;
  for (char c : bytes) append_utf8(out, maps().to_char[uint8_t(c)]);
  return out;
}

bool from_alphabet(std::string_view text, std::string& bytes) {
  bytes.clear();
  auto p = reinterpret_cast<const uint8_t*>(text.data());
  auto end = p + text.size();
  while (p < end) {
    int length;
    int32_t c = decode_utf8(p, end, length);
    if (c < 0 || c >= 0x144 || maps().to_byte[c] < 0) return false;
    bytes += char(maps().to_byte[c]);
    p += length;
  }
  return true;
}

}  // namespace moec::bpe
