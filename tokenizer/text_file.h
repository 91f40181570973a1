// A file's bytes for reading: mapped, or read whole where it is a pipe.
#pragma once
#include <string>
#include <string_view>

#include "support/file.h"

namespace moec {

class TextFile {
 public:
  // UserError naming the path.
  explicit TextFile(const std::string& path);
  std::string_view text() const { return mapped_ ? map_.text() : read_; }

 private:
  MappedFile map_;
  std::string read_;
  bool mapped_ = false;
};

}  // namespace moec
