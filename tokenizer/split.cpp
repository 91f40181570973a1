#include "tokenizer/split.h"

#include <algorithm>

#include "support/error.h"
#include "tokenizer/pattern.h"
#include "tokenizer/regex.h"
#include "tokenizer/split_scalar.h"

namespace moec::bpe {
namespace {

Scan scan_of(const std::string& regex) {
  if (regex.empty()) return Scan::Whole;
  auto name = pattern_name(regex);
  if (name == "gpt2") return Scan::Gpt2;
  if (name == "gpt4" || name == "llama3") return Scan::Gpt4;
  if (name == "cl100k") return Scan::Cl100k;
  if (name == "o200k") return Scan::O200k;
  return Scan::Regex;
}

template <Scan kScan>
size_t split(const ClassTable& table, const uint8_t* p, const uint8_t* stop,
             const uint8_t* end, uint32_t* ends, size_t capacity) {
  Cursor c{table, end};
  size_t n = 0;
  for (const uint8_t* q = p; q < stop && n < capacity; ++n) {
    q = next_piece<kScan>(c, q);
    ends[n] = uint32_t(q - p);
  }
  return n;
}

bool ascii_letter(uint8_t b) { return uint8_t((b | 0x20) - 'a') < 26; }

}  // namespace

SplitFunction split_scalar(Scan scan) {
  switch (scan) {
    case Scan::Gpt2: return split<Scan::Gpt2>;
    case Scan::Gpt4: return split<Scan::Gpt4>;
    case Scan::Cl100k: return split<Scan::Cl100k>;
    case Scan::O200k: return split<Scan::O200k>;
    default: return nullptr;
  }
}

Isa host_isa() {
  static const Isa isa = [] {
    if (__builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2"))
      return Isa::Avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
      return Isa::Avx2;
    return Isa::Scalar;
  }();
  return isa;
}

Splitter::Splitter(const std::string& regex, Isa isa) : scan_(scan_of(regex)) {
  if (scan_ == Scan::Regex)
    regex_ = std::make_shared<const Regex>(regex);
  else if (scan_ != Scan::Whole)
    function_ = isa == Isa::Avx512 ? split_avx512(scan_)
                : isa == Isa::Avx2 ? split_avx2(scan_)
                                   : split_scalar(scan_);
}

Splitter Splitter::units() { return Splitter(); }

size_t Splitter::split(const uint8_t* p, const uint8_t* stop,
                       const uint8_t* end, uint32_t* ends,
                       size_t capacity) const {
  constexpr int64_t kReach = int64_t(1) << 32;
  if (function_) {
    // Offsets are 32 bits, and one batch may cover much text.
    if (end - p < kReach)
      return function_(class_table(), p, stop, end, ends, capacity);
    const uint8_t* near = std::min(stop, p + (kReach >> 1));
    size_t n =
        function_(class_table(), p, near, p + kReach - 1, ends, capacity);
    if (n && ends[n - 1] > kReach - 16) {
      if (n == 1) user_error("a piece of the text has more than 4 GiB");
      --n;
    }
    return n;
  }
  if (end - p >= kReach && !regex_)
    user_error("a text of more than 4 GiB needs a split pattern");
  if (regex_) return regex_->split(p, stop, end, ends, capacity);
  if (p == stop) return 0;
  ends[0] = uint32_t(end - p);
  return 1;
}

const uint8_t* Splitter::safe_cut(const uint8_t* begin, const uint8_t* p,
                                  const uint8_t* end) const {
  if (scan_ == Scan::Units) {
    while (p < end && (*p & 0xC0) == 0x80) ++p;
    return p;
  }
  if (!function_) return end;
  const ClassTable& table = class_table();
  for (p = std::max(p, begin + 1); p < end; ++p) {
    if (*p == ' ') {
      if (p + 1 < end && ascii_letter(p[-1]) && ascii_letter(p[1])) return p;
    } else if (p[-1] == '\n') {
      int length;
      if (is_letter(class_at(table, p, end, length))) return p;
    }
  }
  return end;
}

}  // namespace moec::bpe
