// The files that data.path names, and the documents in them.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "models/moe/config.h"
#include "support/function_ref.h"

namespace moec::moe {

enum class DataKind : uint8_t { Text, JsonLines, Bin, Npy };

struct DataFile {
  std::string path;
  DataKind kind = DataKind::Text;
  bool is_tokens() const {
    return kind == DataKind::Bin || kind == DataKind::Npy;
  }
};

// The files of a list of paths in its order; a path that names no file and has
// one of *?[ stands for all that match, sorted. Kinds go by name: *.bin, *.npy,
// *.jsonl or *.ndjson; any other is text. A UserError where nothing matches, or
// where files of ids and of text are mixed.
std::vector<DataFile> find_data(const std::vector<std::string>& paths);

// Calls `sink` with every document in order: a whole text file, or the member
// data.field of each line of JSON. What a document begins with and is not to be
// learned comes first: the member data.prompt, or "". A UserError for a file
// without any text, and for one that cannot have a prompt.
void for_each_document(
    const std::vector<DataFile>& files, const DataConfig& data,
    FunctionRef<void(std::string_view prompt, std::string_view text)> sink);

}  // namespace moec::moe
