// The folder of a training run: one owner at a time, one run in it.
#pragma once
#include <filesystem>

#include "support/file.h"

namespace moec {

enum class RunMode {
  New,     // the folder holds no run yet
  Resume,  // it may hold one, which is continued
};

class RunFolder {
 public:
  // Creates the folder if need be, locks it, and clears what a killed save
  // left. A UserError if another process has it, or if it holds a run and the
  // mode is New.
  RunFolder(const std::filesystem::path& folder, RunMode mode);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path metrics() const { return path_ / "metrics.jsonl"; }

 private:
  std::filesystem::path path_;
  FolderLock lock_;
};

// PARENT/NAME-K with the smallest K >= 1 that does not exist; creates it.
std::filesystem::path new_run_folder(const std::filesystem::path& parent,
                                     const std::string& name);

}  // namespace moec
