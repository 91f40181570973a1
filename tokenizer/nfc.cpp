#include "tokenizer/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "support/error.h"
#include "tokenizer/utf8.h"

namespace moec::bpe {

std::string_view to_nfc(std::string_view text, std::string& changed) {
  if (std::all_of(text.begin(), text.end(),
                  [](char c) { return uint8_t(c) < 0x80; }))
    return text;
  changed.clear();
  auto p = reinterpret_cast<const uint8_t*>(text.data());
  auto end = p + text.size();
  while (p < end) {
    int length;
    auto q = p;
    while (q < end && decode_utf8(q, end, length) >= 0) q += length;
    utf8proc_uint8_t* out = nullptr;
    auto n = utf8proc_map(
        p, q - p, &out, utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(out, std::free);
    if (n < 0) user_error("cannot normalise the text: {}", utf8proc_errmsg(n));
    changed.append(reinterpret_cast<const char*>(out), size_t(n));
    for (p = q; p < end && decode_utf8(p, end, length) < 0; ++p)
      changed += char(*p);
  }
  return changed;
}

}  // namespace moec::bpe
