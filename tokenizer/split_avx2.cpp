// The block scanner on AVX2, two halves of 32 bytes.
#include <immintrin.h>

#include "tokenizer/function_target.h"
#include "tokenizer/split_scalar.h"

MOEC_TARGET_BEGIN("avx2,bmi,bmi2,lzcnt,popcnt")

namespace moec::bpe {
namespace {

struct Masks;
uint64_t classify_ascii(const uint8_t* p, Masks& m);
size_t emit(uint64_t bits, uint32_t base, uint32_t* out);

#include "tokenizer/split_masks.inc"

// 255 where low <= v < low + count, as unsigned bytes.
inline __m256i within(__m256i v, uint8_t low, uint8_t count) {
  __m256i d = _mm256_sub_epi8(v, _mm256_set1_epi8(char(low)));
  __m256i top = _mm256_set1_epi8(char(count - 1));
  return _mm256_cmpeq_epi8(_mm256_min_epu8(d, top), d);
}

inline uint64_t classify_ascii(const uint8_t* p, Masks& m) {
  __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  auto mask = [](__m256i x, __m256i y) {
    return uint64_t(uint32_t(_mm256_movemask_epi8(x))) |
           uint64_t(uint32_t(_mm256_movemask_epi8(y))) << 32;
  };
  auto range = [&](uint8_t low, uint8_t count) {
    return mask(within(a, low, count), within(b, low, count));
  };
  auto equal = [&](char c) {
    __m256i k = _mm256_set1_epi8(c);
    return mask(_mm256_cmpeq_epi8(a, k), _mm256_cmpeq_epi8(b, k));
  };
  m.upper = range('A', 26);
  m.letter = m.upper | range('a', 26);
  m.number = range('0', 10);
  m.newline = equal('\n') | equal('\r');
  m.blank = equal(' ');
  m.space = range(9, 5) | m.blank;
  m.quote = equal('\'');
  m.slash = equal('/');
  return mask(a, b);
}

inline size_t emit(uint64_t bits, uint32_t base, uint32_t* out) {
  size_t n = 0;
  for (; bits; bits &= bits - 1)
    out[n++] = base + uint32_t(__builtin_ctzll(bits));
  return n;
}

}  // namespace

SplitFunction split_avx2(Scan scan) { return function_of(scan); }

}  // namespace moec::bpe

MOEC_TARGET_END
