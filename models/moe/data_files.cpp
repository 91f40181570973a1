#include "models/moe/data_files.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>

#include "models/moe/chronicle.h"
#include "models/moe/data.h"
#include "runtime/jsonl.h"
#include "support/error.h"
#include "tokenizer/text_file.h"

namespace moec::moe {
namespace {

DataKind kind_of(const std::string& path) {
  if (path.ends_with(".bin")) return DataKind::Bin;
  if (path.ends_with(".npy")) return DataKind::Npy;
  if (path.ends_with(".jsonl") || path.ends_with(".ndjson"))
    return DataKind::JsonLines;
  return DataKind::Text;
}

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found{};
  std::vector<std::string> out;
  if (glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0)
    out.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  std::erase_if(out, [](auto& p) {
    std::error_code ignored;
    return std::filesystem::is_directory(p, ignored);
  });
  // By bytes, whatever the locale: the order decides the training.
  std::ranges::sort(out);
  if (out.empty()) user_error("{}: no file matches", pattern);
  return out;
}

}  // namespace

std::vector<DataFile> find_data(const std::vector<std::string>& paths) {
  std::vector<DataFile> files;
  for (auto& path : paths) {
    bool pattern = path.find_first_of("*?[") != path.npos;
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored))
      user_error("{}: is a folder; name its files, such as {}/*.txt", path,
                 path);
    if (!pattern || std::filesystem::exists(path, ignored))
      files.push_back({path, kind_of(path)});
    else
      for (auto& p : matches(path)) files.push_back({p, kind_of(p)});
  }
  for (auto& f : files)
    if (f.is_tokens() != files[0].is_tokens())
      user_error(
          "{} and {}: the data mixes files of token ids with text; `moec "
          "tokenizer encode` makes ids from the text",
          files[0].path, f.path);
  return files;
}

void for_each_document(
    const std::vector<DataFile>& files, const DataConfig& data,
    FunctionRef<void(std::string_view, std::string_view)> sink) {
  bool prompts = !data.prompt.empty();
  for (auto& f : files) {
    if (prompts && f.kind != DataKind::JsonLines)
      user_error(
          "{}: only JSON lines have a data.prompt; --set data.prompt= sets "
          "none",
          f.path);
    if (f.path == kBuiltinText) {
      sink("", chronicle({}));
      continue;
    }
    TextFile file(f.path);
    if (file.text().empty()) user_error("{}: the file is empty", f.path);
    if (f.kind != DataKind::JsonLines)
      sink("", file.text());
    else if (prompts)
      for_each_json_pair(file.text(), f.path, data.prompt, data.field, sink);
    else
      for_each_json_line(file.text(), f.path, data.field,
                         [&](std::string_view text) { sink("", text); });
  }
}

}  // namespace moec::moe
