// The block scanner on AVX-512 (Ice Lake, Zen 4 and later).
#include <immintrin.h>

#include <cstring>

#include "tokenizer/function_target.h"
#include "tokenizer/split_scalar.h"

MOEC_TARGET_BEGIN(
    "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,bmi,bmi2,lzcnt,popcnt")

namespace moec::bpe {
namespace {

struct Masks;
uint64_t classify_ascii(const uint8_t* p, Masks& m);
size_t emit(uint64_t bits, uint32_t base, uint32_t* out);

#include "tokenizer/split_masks.inc"

// One class bit set per ASCII character, looked up 64 at a time.
enum : uint8_t {
  kIsLetter = 1,
  kIsUpper = 2,
  kIsNumber = 4,
  kIsSpace = 8,
  kIsNewline = 16,
  kIsBlank = 32,
  kIsQuote = 64,
  kIsSlash = 128
};

struct AsciiTable {
  alignas(64) uint8_t bits[128];
  constexpr AsciiTable() : bits{} {
    for (int c = 'a'; c <= 'z'; ++c) {
      bits[c] = kIsLetter;
      bits[c - 32] = kIsLetter | kIsUpper;
    }
    for (int c = '0'; c <= '9'; ++c) bits[c] = kIsNumber;
    for (int c = 9; c <= 13; ++c) bits[c] = kIsSpace;
    bits[10] = bits[13] = kIsSpace | kIsNewline;
    bits[32] = kIsSpace | kIsBlank;
    bits[39] = kIsQuote;
    bits[47] = kIsSlash;
  }
};
constexpr AsciiTable kAscii;

inline uint64_t classify_ascii(const uint8_t* p, Masks& m) {
  __m512i v = _mm512_loadu_si512(p);
  __m512i k = _mm512_permutex2var_epi8(_mm512_load_si512(kAscii.bits), v,
                                       _mm512_load_si512(kAscii.bits + 64));
  uint64_t wide = _mm512_movepi8_mask(v);
  k = _mm512_maskz_mov_epi8(~wide, k);
  auto test = [&](uint8_t bit) {
    return _mm512_test_epi8_mask(k, _mm512_set1_epi8(char(bit)));
  };
  m.letter = test(kIsLetter);
  m.upper = test(kIsUpper);
  m.number = test(kIsNumber);
  m.space = test(kIsSpace);
  m.newline = test(kIsNewline);
  m.blank = test(kIsBlank);
  m.quote = test(kIsQuote);
  m.slash = test(kIsSlash);
  return wide;
}

struct Iota {
  alignas(64) uint8_t at[64];
  constexpr Iota() : at{} {
    for (int i = 0; i < 64; ++i) at[i] = uint8_t(i);
  }
};
constexpr Iota kIota;

inline size_t emit(uint64_t bits, uint32_t base, uint32_t* out) {
  __m512i at = _mm512_maskz_compress_epi8(bits, _mm512_load_si512(kIota.at));
  __m512i b = _mm512_set1_epi32(int(base));
  size_t n = size_t(__builtin_popcountll(bits));
  auto put = [&](__m128i four, size_t i) {
    _mm512_storeu_si512(out + i,
                        _mm512_add_epi32(b, _mm512_cvtepu8_epi32(four)));
  };
  put(_mm512_castsi512_si128(at), 0);
  if (n > 16) {
    put(_mm512_extracti32x4_epi32(at, 1), 16);
    if (n > 32) {
      put(_mm512_extracti32x4_epi32(at, 2), 32);
      put(_mm512_extracti32x4_epi32(at, 3), 48);
    }
  }
  return n;
}

}  // namespace

SplitFunction split_avx512(Scan scan) { return function_of(scan); }

}  // namespace moec::bpe

MOEC_TARGET_END
