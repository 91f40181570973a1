#include "runtime/run_folder.h"

#include <fmt/core.h>

#include <system_error>

#include "runtime/checkpoint.h"
#include "support/error.h"

namespace moec {
namespace fs = std::filesystem;
namespace {

fs::path made(const fs::path& folder) {
  make_folders(folder);
  return folder;
}

}  // namespace

RunFolder::RunFolder(const fs::path& folder, RunMode mode)
    : path_(made(folder)), lock_(folder) {
  if (mode == RunMode::New &&
      (fs::exists(metrics()) || !checkpoint_steps(folder).empty()))
    user_error(
        "{}: holds the files of another run; continue it with --resume auto "
        "or choose another --out",
        folder.string());
  clean_checkpoints(folder);
}

fs::path new_run_folder(const fs::path& parent, const std::string& name) {
  make_folders(parent);
  for (int k = 1;; ++k) {
    fs::path folder = parent / fmt::format("{}-{}", name, k);
    std::error_code e;
    // Creating it is the test: two runs that start together get two folders.
    if (fs::create_directory(folder, e)) return folder;
    if (e) user_error("{}: cannot create: {}", folder.string(), e.message());
  }
}

}  // namespace moec
