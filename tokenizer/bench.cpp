#include "tokenizer/bench.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "tokenizer/huge_array.h"

namespace moec {
namespace {

double clock_seconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

}  // namespace

TokenizerSpeed bench_tokenizer(const Tokenizer& fresh, std::string_view text,
                               int threads) {
  TokenizerSpeed s{};
  for (int pass = 0; pass < 4; ++pass) {
    double wall = clock_seconds(CLOCK_MONOTONIC);
    double cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
    // Room for one id a byte; only what is written takes memory.
    bpe::HugeArray<uint32_t> ids(text.size() + 1);
    size_t n = 0;
    fresh.encode_to(text,
                    [&](std::span<const uint32_t> part) {
                      std::memcpy(ids.data() + n, part.data(),
                                  part.size_bytes());
                      n += part.size();
                    },
                    {.threads = threads});
    wall = clock_seconds(CLOCK_MONOTONIC) - wall;
    cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    double mb = double(text.size()) * 1e-6;
    (pass ? s.warm : s.cold) = std::max(pass ? s.warm : 0, mb / wall);
    (pass ? s.warm_cpu : s.cold_cpu) =
        std::max(pass ? s.warm_cpu : 0, mb / cpu);
    s.tokens = int64_t(n);
  }
  return s;
}

}  // namespace moec
