// What every test program shares beside doctest.
#pragma once
#include <doctest/doctest.h>

#include <filesystem>
#include <functional>
#include <string>

namespace moec {

// Marks the running test case as skipped, with the reason; then return.
void skip_test(const std::string& why);

// True under `./dev test --long` (MOEC_TEST_LONG=1).
bool long_tests();

// What the UserError says that `f` throws; empty if it throws none. An
// InternalError is named as such, as it is a bug where an error was expected.
std::string error_of(const std::function<void()>& f);

// A new empty folder, removed with everything in it at the end of the scope.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const {
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace moec
