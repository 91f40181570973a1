// Files: whole reads, maps, atomic writes, the lock of a folder. Every failure
// is a UserError that begins with the path.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace moec {

std::string read_file(const std::filesystem::path& path);

// A read-only map of a whole regular file; an empty file gives an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&& o) noexcept;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const {
    return {reinterpret_cast<const char*>(data_), size_};
  }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A file written beside its place and moved there by commit(): fsync, rename,
// fsync of the folder. Readers see the old file or the whole new one. Without
// commit(), or when a write fails, nothing stays behind.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(std::span<const std::byte> data);
  void write(std::string_view text);
  void commit();

 private:
  void flush();
  [[noreturn]] void fail(const char* doing);

  std::filesystem::path path_, temp_;
  std::string buffer_;
  int64_t written_ = 0;
  int fd_ = -1;
};

void write_file_atomic(const std::filesystem::path& path,
                       std::string_view text);

// Makes names created or renamed inside the folder durable.
void sync_folder(const std::filesystem::path& folder);

// Creates the folder and its missing parents.
void make_folders(const std::filesystem::path& folder);

// An exclusive lock of an existing folder (flock on FOLDER/.lock) until the
// end of the scope or of the process, however it ends. A UserError that names
// the holder if another process, or another lock here, has it.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(FolderLock&& o) noexcept;
  FolderLock& operator=(FolderLock&&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace moec
