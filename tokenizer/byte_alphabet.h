// GPT-2's byte <-> character map: printable Latin-1 stands for itself, the
// other 68 bytes for U+0100 on, so that a token of any bytes is readable text.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace moec::bpe {

// The code point of each byte.
const std::array<uint16_t, 256>& byte_to_char();
// The bytes in the order of their code points: HF's ids 0..255.
const std::array<uint8_t, 256>& alphabet_order();
std::string to_alphabet(std::string_view bytes);
// False where a character is none of the map's.
bool from_alphabet(std::string_view text, std::string& bytes);

}  // namespace moec::bpe
