// The main program of every test, and a last line with its counts, which
// `./dev test` adds up.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "tests/test.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "support/error.h"

namespace moec {
namespace {

bool skipped_now = false;
int passed = 0, failed = 0, skipped = 0;

struct Counts : doctest::IReporter {
  explicit Counts(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats&) override {
    std::printf("moec-test: %d passed, %d failed, %d skipped\n", passed, failed,
                skipped);
    std::fflush(stdout);
  }
  void test_case_start(const doctest::TestCaseData&) override {
    skipped_now = false;
  }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats& s) override {
    ++(s.failure_flags ? failed : skipped_now ? skipped : passed);
  }
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};

REGISTER_LISTENER("counts", 1, Counts);

}  // namespace

void skip_test(const std::string& why) {
  skipped_now = true;
  std::printf("skipped: %s\n", why.c_str());
}

bool long_tests() {
  const char* v = std::getenv("MOEC_TEST_LONG");
  return v && std::string(v) == "1";
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const UserError& e) {
    return e.what();
  } catch (const InternalError& e) {
    return std::string("InternalError: ") + e.what();
  }
  return {};
}

TempDir::TempDir() {
  auto base =
      (std::filesystem::temp_directory_path() / "moec-test-XXXXXX").string();
  if (!mkdtemp(base.data())) throw std::runtime_error("mkdtemp " + base);
  path_ = base;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace moec
