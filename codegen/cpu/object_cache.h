// Compiled kernels on disk, one file each. A missing, truncated or corrupted
// entry counts as absent; an entry that cannot be written is not an error.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace moec {

class ObjectCache {
 public:
  explicit ObjectCache(std::string dir);  // empty: caches nothing
  // `key` is the full text that determines the object.
  std::optional<std::string> load(std::string_view key) const;
  void save(std::string_view key, std::string_view object) const;
  std::string path(std::string_view key) const;

 private:
  std::string dir_;
};

}  // namespace moec
