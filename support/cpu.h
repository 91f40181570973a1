// What this process may use of the machine: cores and memory.
#pragma once
#include <cstdint>
#include <filesystem>

namespace moec {

// Cores of the affinity mask, less where a cgroup quota (v1 or v2) allows
// less; at least 1. `root` holds proc/ and sys/ and is "/" outside tests.
int available_cores(const std::filesystem::path& root = "/");

// Bytes that can still be allocated: MemAvailable, less where a cgroup limit
// leaves less (its inactive file cache counts as free).
int64_t available_memory(const std::filesystem::path& root = "/");

// Largest resident size of this process so far, in bytes.
int64_t peak_resident_bytes();

}  // namespace moec
