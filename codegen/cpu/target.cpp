#include "codegen/cpu/target.h"

#include <llvm/ADT/StringMap.h>
#include <llvm/Config/llvm-config.h>
#include <llvm/TargetParser/Host.h>

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "support/error.h"

namespace moec {

namespace {

using Features = llvm::StringMap<bool, llvm::MallocAllocator>;

bool has(const Features& f, std::initializer_list<const char*> names) {
  for (const char* n : names)
    if (!f.lookup(n)) return false;
  return true;
}

bool runs_v3(const Features& f) {
  return has(f, {"avx2", "fma", "f16c", "bmi2", "movbe", "lzcnt"});
}

bool runs_v4(const Features& f) {
  return runs_v3(f) &&
         has(f, {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"});
}

// Tile registers are off in a process until it asks for them; once asked, all
// its threads have them. Any failure means that there are none.
bool obtain_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted =
      ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

}  // namespace

std::string Target::id() const {
  return level + "/" + cpu + "/" + features + (amx_bf16 ? "/tiles" : "");
}

Target make_target(std::string_view level) {
  const Features host = llvm::sys::getHostCPUFeatures();
  Target t;
  t.level = level;
  int rank = 0;
  if (level == "native" || level == "native-noamx") {
    t.cpu = llvm::sys::getHostCPUName();
    // sorted, so that equal hosts give equal cache keys
    std::vector<std::string> list;
    for (const auto& f : host)
      list.push_back((f.second ? "+" : "-") + f.first().str());
    std::sort(list.begin(), list.end());
    for (auto& f : list) t.features += (t.features.empty() ? "" : ",") + f;
    rank = runs_v4(host) ? 4 : runs_v3(host) ? 3 : 1;
    t.vbmi = rank == 4 && has(host, {"avx512vbmi"});
    t.bf16_dot = rank == 4 && has(host, {"avx512bf16"});
    t.amx_bf16 = level == "native" && t.bf16_dot &&
                 has(host, {"amx-tile", "amx-bf16"}) && obtain_tiles();
  } else if (level == "x86-64-v4" || level == "x86-64-v3" ||
             level == "x86-64") {
    t.cpu = level;
    rank = level == "x86-64-v4" ? 4 : level == "x86-64-v3" ? 3 : 1;
    if ((rank == 4 && !runs_v4(host)) || (rank == 3 && !runs_v3(host)))
      usage_error("MOEC_CPU={}: this CPU ({}) lacks that level; use native",
                  level, llvm::sys::getHostCPUName().str());
  } else {
    usage_error(
        "MOEC_CPU={}: unknown; use native, native-noamx, x86-64-v4, x86-64-v3 "
        "or x86-64",
        level);
  }
  t.avx512 = rank == 4;
  t.lanes = rank == 4 ? 16 : rank == 3 ? 8 : 4;
  t.registers = rank == 4 ? 32 : 16;
  t.fma = t.f16c = rank >= 3;
  return t;
}

const Target& host_target() {
  static const Target t = [] {
    const char* level = std::getenv("MOEC_CPU");
    return make_target(level && *level ? level : "native");
  }();
  return t;
}

std::string compiler_versions() {
#ifdef __clang__
  return "LLVM " LLVM_VERSION_STRING ", built by Clang " __clang_version__;
#else
  return "LLVM " LLVM_VERSION_STRING ", built by GCC " __VERSION__;
#endif
}

}  // namespace moec
