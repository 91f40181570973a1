#include "support/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "support/error.h"

namespace moec {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBuffer = size_t(1) << 20;

std::string reason() { return std::strerror(errno); }

// Opens a regular file for reading; says what to do about the usual errors.
int open_regular(const fs::path& path, int64_t& size) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) user_error("{}: cannot open: {}", path.string(), reason());
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    close(fd);
    user_error("{}: not a regular file", path.string());
  }
  size = st.st_size;
  return fd;
}

}  // namespace

std::string read_file(const fs::path& path) {
  int64_t size = 0;
  int fd = open_regular(path, size);
  // One byte more, so that the end is seen without another allocation.
  std::string text(size_t(size) + 1, '\0');
  size_t have = 0;
  // Reads to the end, not to the size: files in /proc state a size of 0.
  for (;;) {
    if (have == text.size()) text.resize(have + 4096);
    ssize_t n = read(fd, text.data() + have, text.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      std::string why = reason();
      close(fd);
      user_error("{}: cannot read: {}", path.string(), why);
    }
    if (n == 0) break;
    have += size_t(n);
  }
  close(fd);
  text.resize(have);
  return text;
}

MappedFile::MappedFile(const fs::path& path) {
  int64_t size = 0;
  int fd = open_regular(path, size);
  if (size > 0) {
    void* p = mmap(nullptr, size_t(size), PROT_READ, MAP_PRIVATE, fd, 0);
    std::string why = p == MAP_FAILED ? reason() : "";
    close(fd);
    if (p == MAP_FAILED) user_error("{}: cannot map: {}", path.string(), why);
    data_ = static_cast<const std::byte*>(p);
    size_ = size_t(size);
  } else {
    close(fd);
  }
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)),
      size_(std::exchange(o.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  static std::atomic<int> counter{0};
  temp_ = path_;
  temp_ += fmt::format(".tmp-{}-{}", getpid(), counter++);
  fd_ = open(temp_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) user_error("{}: cannot create: {}", path_.string(), reason());
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temp_.c_str());
}

void AtomicFile::fail(const char* doing) {
  int e = errno;
  close(std::exchange(fd_, -1));
  unlink(temp_.c_str());
  if (e == ENOSPC || e == EDQUOT || e == EFBIG)
    user_error(
        "{}: no room left on the disk after {} bytes: {}; free some space or "
        "choose another folder",
        path_.string(), written_, std::strerror(e));
  user_error("{}: cannot {}: {}", path_.string(), doing, std::strerror(e));
}

void AtomicFile::flush() {
  const char* p = buffer_.data();
  size_t left = buffer_.size();
  while (left > 0) {
    ssize_t n = ::write(fd_, p, left);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write");
    p += n;
    left -= size_t(n);
    written_ += n;
  }
  buffer_.clear();
}

void AtomicFile::write(std::span<const std::byte> data) {
  write(std::string_view(reinterpret_cast<const char*>(data.data()),
                         data.size()));
}

void AtomicFile::write(std::string_view text) {
  MOEC_CHECK(fd_ >= 0, "write after commit");
  while (!text.empty()) {
    size_t n = std::min(text.size(), kBuffer - buffer_.size());
    buffer_.append(text.substr(0, n));
    text.remove_prefix(n);
    if (buffer_.size() == kBuffer) flush();
  }
}

void AtomicFile::commit() {
  MOEC_CHECK(fd_ >= 0, "committed twice");
  flush();
  if (fsync(fd_) != 0) fail("fsync");
  if (rename(temp_.c_str(), path_.c_str()) != 0) fail("rename");
  close(std::exchange(fd_, -1));
  sync_folder(path_.has_parent_path() ? path_.parent_path() : ".");
}

void write_file_atomic(const fs::path& path, std::string_view text) {
  AtomicFile f(path);
  f.write(text);
  f.commit();
}

void sync_folder(const fs::path& folder) {
  int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) user_error("{}: cannot open: {}", folder.string(), reason());
  // Some file systems cannot sync a folder and say EINVAL; that is no loss.
  bool failed = fsync(fd) != 0 && errno != EINVAL;
  std::string why = failed ? reason() : "";
  close(fd);
  if (failed) user_error("{}: cannot fsync: {}", folder.string(), why);
}

void make_folders(const fs::path& folder) {
  std::error_code e;
  fs::create_directories(folder, e);
  if (e || !fs::is_directory(folder, e))
    user_error("{}: cannot create the folder: {}", folder.string(),
               e ? e.message() : "a file has this name");
}

FolderLock::FolderLock(const fs::path& folder) {
  fs::path file = folder / ".lock";
  fd_ = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) user_error("{}: cannot open: {}", file.string(), reason());
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    ssize_t n = pread(fd_, holder, sizeof holder - 1, 0);
    close(fd_);
    user_error("{}: in use by process {}; wait for it or choose another folder",
               folder.string(), n > 0 ? holder : "(unknown)");
  }
  // The process id only serves the message above; a failure is harmless.
  std::string pid = std::to_string(getpid());
  if (ftruncate(fd_, 0) != 0 ||
      pwrite(fd_, pid.data(), pid.size(), 0) != ssize_t(pid.size()))
    errno = 0;
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) close(fd_);
}

FolderLock::FolderLock(FolderLock&& o) noexcept
    : fd_(std::exchange(o.fd_, -1)) {}

}  // namespace moec
