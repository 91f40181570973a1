// Runs the pass tests, tests/passes/*.ir. A file says in its RUN lines which
// passes to run, and FileCheck-19 compares what comes out with its CHECK
// lines:
//   // RUN: --passes=canonicalize,cse [--fuse=LIST] [--moe=FORM] [--explain]
// `// -----` splits a file into modules of their own. With --explain, the
// reasons why fusions did not apply come before each module.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "ir/text.h"
#include "passes/pass_manager.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec {
namespace {

namespace fs = std::filesystem;

std::string read_all(const fs::path& path) {
  std::ifstream in(path);
  std::stringstream s;
  s << in.rdbuf();
  return s.str();
}

std::vector<std::string> split(const std::string& text, std::string mark) {
  std::vector<std::string> parts;
  for (size_t at = 0;;) {
    size_t end = text.find(mark, at);
    parts.push_back(text.substr(at, end - at));
    if (end == text.npos) return parts;
    at = end + mark.size();
  }
}

struct Run {
  std::vector<std::string> passes;
  PassContext ctx;
};

Run parse_run(const std::string& line) {
  Run run;
  std::stringstream words(line);
  for (std::string w; words >> w;) {
    auto equals = w.find('=');
    std::string key = w.substr(0, equals);
    std::string value = equals == w.npos ? "" : w.substr(equals + 1);
    if (key == "--passes")
      run.passes = split(value, ",");
    else if (key == "--fuse")
      run.ctx.options.fuse = FusionSet::parse(value);
    else if (key == "--moe")
      run.ctx.options.moe = parse_moe_form(value);
    else if (key == "--dtype")
      run.ctx.options.compute_dtype = *parse_dtype(value);
    else if (key == "--explain")
      run.ctx.debug = 3;
    else
      FAIL("unknown word in RUN line: ", w);
  }
  return run;
}

// What the passes make of every module of the file.
std::string run_passes_on(const std::string& text, Run& run,
                          const std::string& name) {
  std::string out;
  run.ctx.log = [&](std::string_view line) {
    if (line.find("not applied") != line.npos) out += std::string(line) + "\n";
  };
  for (const std::string& part : split(text, "// -----")) {
    Module m = parse_module(part, name);
    for (auto& g : m.functions) run_passes(*g, run.passes, run.ctx);
    out += print(m);
  }
  return out;
}

int file_check(const fs::path& file, const std::string& input,
               const TempDir& dir) {
  fs::path actual = dir / "actual.ir";
  std::ofstream(actual) << input;
  std::string command = "FileCheck-19 --input-file " + actual.string() + " " +
                        file.string() + " 2>&1";
  return std::system(command.c_str());
}

TEST_CASE("pass tests by FileCheck") {
  if (std::system("FileCheck-19 --version > /dev/null 2>&1") != 0)
    return skip_test("FileCheck-19 is not installed (llvm-19-tools)");
  TempDir dir;
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator("tests/passes"))
    if (entry.path().extension() == ".ir") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  CHECK(!files.empty());
  for (const fs::path& file : files) {
    INFO("file: ", file.string());
    std::string text = read_all(file);
    int runs = 0;
    std::stringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("// RUN: ")) continue;
      ++runs;
      Run run = parse_run(line.substr(8));
      std::string out;
      CHECK_NOTHROW(out = run_passes_on(text, run, file.string()));
      CHECK(file_check(file, out, dir) == 0);
    }
    CHECK_MESSAGE(runs > 0, "no RUN line");
  }
}

}  // namespace
}  // namespace moec
