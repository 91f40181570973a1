#include "passes/dump.h"

#include <fmt/format.h>
#include <unistd.h>

#include "ir/text.h"
#include "support/file.h"

namespace moec {
namespace {

// The flags that give these options, where they are not the usual ones.
std::string flags(const PipelineOptions& o) {
  PipelineOptions usual;
  std::string s;
  if (o.fuse != usual.fuse) s += " --fuse=" + o.fuse.to_string();
  if (o.moe != usual.moe) s += fmt::format(" --moe={}", moe_form_name(o.moe));
  if (o.compute_dtype != usual.compute_dtype)
    s += fmt::format(" --set train.dtype={}", dtype_name(o.compute_dtype));
  if (o.remat) s += " --set compile.remat=true";
  return s;
}

// A name that no other process takes at the same time.
std::filesystem::path new_file(const std::string& function) {
  auto base = std::filesystem::temp_directory_path();
  for (int k = 0;; ++k) {
    auto path = base / fmt::format("moec-{}-{}-{}.ir", function, getpid(), k);
    if (!std::filesystem::exists(path)) return path;
  }
}

}  // namespace

DumpHook write_dumps(std::filesystem::path folder) {
  return [folder](int index, std::string_view pass, const Graph& g) {
    make_folders(folder / g.name());
    write_file_atomic(
        folder / g.name() / fmt::format("{:02}_{}.ir", index, pass), print(g));
  };
}

void throw_with_reproducer(const InternalError& error, const Graph& graph,
                           const PipelineOptions& options,
                           std::string_view arguments) {
  std::string note;
  try {
    auto file = new_file(graph.name());
    write_file_atomic(file, print(graph));
    note = fmt::format("to see it again: moec dump {} {}{}", file.string(),
                       arguments, flags(options));
  } catch (const std::exception& e) {
    note = fmt::format("no file could be written that shows it: {}", e.what());
  }
  throw InternalError(fmt::format("{}\n{}", error.what(), note));
}

}  // namespace moec
