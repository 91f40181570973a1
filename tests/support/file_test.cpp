#include "support/file.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>

#include "support/error.h"
#include "tests/test.h"

using namespace moec;
namespace fs = std::filesystem;

namespace {

size_t entries(const fs::path& folder) {
  return size_t(std::distance(fs::directory_iterator(folder), {}));
}

}  // namespace

TEST_CASE("file: atomic write, read and map") {
  TempDir dir;
  std::string text(3 << 20, 'a');
  text += '\0';
  write_file_atomic(dir / "x", "old");
  write_file_atomic(dir / "x", text);
  CHECK(read_file(dir / "x") == text);
  CHECK(MappedFile(dir / "x").text() == text);
  write_file_atomic(dir / "empty", "");
  CHECK(MappedFile(dir / "empty").bytes().empty());
  CHECK(entries(dir.path()) == 2);
  CHECK(read_file("/proc/self/cmdline").size() > 3);
}

TEST_CASE("file: errors name the path") {
  TempDir dir;
  std::string gone = (dir / "gone").string();
  CHECK(error_of([&] { read_file(gone); }) ==
        gone + ": cannot open: No such file or directory");
  CHECK(error_of([&] { MappedFile m(dir.path()); }) ==
        dir.path().string() + ": not a regular file");
  CHECK(error_of([&] {
          write_file_atomic(dir / "a/b", "");
        }).find("cannot create") != std::string::npos);
  write_file_atomic(dir / "f", "");
  CHECK(error_of([&] { make_folders(dir / "f"); }).find("cannot create") !=
        std::string::npos);
}

TEST_CASE("file: uncommitted or failed, nothing stays") {
  TempDir dir;
  write_file_atomic(dir / "x", "old");
  {
    AtomicFile f(dir / "x");
    f.write("half");
  }
  CHECK(read_file(dir / "x") == "old");
  // A limit on file size stands for a full disk: write() fails midway.
  rlimit was;
  getrlimit(RLIMIT_FSIZE, &was);
  auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit tight{5 << 20, was.rlim_max};
  setrlimit(RLIMIT_FSIZE, &tight);
  std::string why = error_of(
      [&] { write_file_atomic(dir / "x", std::string(8 << 20, 'n')); });
  setrlimit(RLIMIT_FSIZE, &was);
  std::signal(SIGXFSZ, handler);
  CHECK(why.find("no room left on the disk after 5242880 bytes") !=
        std::string::npos);
  CHECK(read_file(dir / "x") == "old");
  CHECK(entries(dir.path()) == 1);
}

TEST_CASE("file: a folder's lock") {
  TempDir dir;
  {
    FolderLock lock(dir.path());
    std::string why = error_of([&] { FolderLock second(dir.path()); });
    CHECK(why.find("in use by process " + std::to_string(getpid())) !=
          std::string::npos);
  }
  FolderLock again(dir.path());
  // A holder that dies leaves no lock behind.
  TempDir other;
  pid_t child = fork();
  if (child == 0) {
    new FolderLock(other.path());
    raise(SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status));
  CHECK(error_of([&] { FolderLock lock(other.path()); }) == "");
}
