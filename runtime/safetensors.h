// Tensors in files: the safetensors format (header length as u64, JSON header,
// raw little-endian data), one file or a folder of shards with an index.
// Reading maps the files; nothing is copied. Every defect is a UserError
// `file:offset: reason`.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/dtype.h"
#include "support/file.h"

namespace moec {

struct TensorEntry {
  std::string name;
  std::string dtype_text;      // as the file says: "F32", "BF16", "U8", ...
  std::optional<DType> dtype;  // nothing for one that moec has no type for
  std::vector<int64_t> dims;
  std::span<const std::byte> bytes;  // in the map; any alignment
  int32_t file = 0;
};

class Safetensors {
 public:
  // `path` is a .safetensors file, a *.safetensors.index.json file, or a
  // folder that holds model.safetensors or model.safetensors.index.json.
  explicit Safetensors(const std::filesystem::path& path);

  // By name, ascending.
  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;
  // The data of a tensor that must be there with this type and shape.
  std::span<const std::byte> require(std::string_view name, DType dtype,
                                     std::span<const int64_t> dims) const;
  // The "__metadata__" of the first file.
  const std::map<std::string, std::string>& metadata() const {
    return metadata_;
  }
  // Where a tensor stands, as `file:offset`.
  std::string place(const TensorEntry& t) const;

 private:
  void add_file(const std::filesystem::path& path);
  void add_shards(const std::filesystem::path& index);
  void sort_by_name();

  // The headers are views of the maps; sought through for messages only.
  std::vector<MappedFile> maps_;
  std::vector<std::string_view> headers_;
  std::vector<std::filesystem::path> paths_;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

// A tensor to write, dense, row-major, little-endian: `bytes`, then the pieces
// of `rest`, as it may lie in several places.
struct TensorView {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> dims;
  std::span<const std::byte> bytes;
  std::vector<std::span<const std::byte>> rest = {};
};

// Writes atomically (support/file.h). The same tensors give the same bytes in
// whatever order they come: wide types first, then by name; the data starts at
// a multiple of 64.
void write_safetensors(const std::filesystem::path& path,
                       std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata = {});

// "[2,3]"; for messages.
std::string dims_text(std::span<const int64_t> dims);

}  // namespace moec
