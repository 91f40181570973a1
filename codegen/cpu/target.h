// The CPU that kernels are compiled for. The feature level comes from the host
// at run time; MOEC_CPU=native-noamx|x86-64-v4|x86-64-v3|x86-64 forces a lower
// one.
#pragma once
#include <string>
#include <string_view>

namespace moec {

struct Target {
  std::string level;      // as in MOEC_CPU; "native" unless forced
  std::string cpu;        // LLVM's processor name, e.g. "znver4"
  std::string features;   // LLVM's feature list, "+avx2,-sse4a,..."
  int lanes = 4;          // f32 lanes of a vector register: 16, 8 or 4
  int registers = 16;     // vector registers
  bool fma = false;       // fused multiply-add; else emitted as mul + add
  bool f16c = false;      // f16 <-> f32 conversion instructions
  bool avx512 = false;    // 512-bit vectors with mask registers
  bool vbmi = false;      // permutes bytes of a 512-bit vector
  bool bf16_dot = false;  // vdpbf16ps and vcvtneps2bf16 on 512-bit vectors
  bool amx_bf16 = false;  // bf16 tiles, and leave from the system to use them

  // Distinguishes targets in cache keys.
  std::string id() const;
};

// UsageError if the level is unknown or the host cannot run it.
Target make_target(std::string_view level);

// "LLVM 19.1.7, built by GCC 12.2.0".
std::string compiler_versions();

// make_target of MOEC_CPU, or of "native"; read once.
const Target& host_target();

}  // namespace moec
