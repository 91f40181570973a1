// Unicode normal form C of the valid parts of a text; bytes that are not UTF-8
// stay where they are.
#pragma once
#include <string>
#include <string_view>

namespace moec::bpe {

// `changed` is filled and returned where the text is not plain ASCII.
std::string_view to_nfc(std::string_view text, std::string& changed);

}  // namespace moec::bpe
