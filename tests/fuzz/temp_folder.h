// A folder for the files of one fuzz process, in memory where there is such a
// place: every file that moec writes is synced.
#pragma once
#include <fmt/core.h>
#include <unistd.h>

#include <filesystem>

namespace moec {

struct TempFolder {
  TempFolder() {
    std::filesystem::path shm = "/dev/shm";
    if (!std::filesystem::exists(shm))
      shm = std::filesystem::temp_directory_path();
    path = shm / fmt::format("moec-fuzz-{}", getpid());
    std::filesystem::create_directories(path);
  }
  ~TempFolder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

}  // namespace moec
