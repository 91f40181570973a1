#include "support/cpu.h"

#include <fstream>

#include "support/progress.h"
#include "tests/test.h"

using namespace moec;

namespace {

void put(const std::filesystem::path& file, const std::string& text) {
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

}  // namespace

TEST_CASE("cpu: this machine") {
  CHECK(available_cores() >= 1);
  CHECK(available_memory() > 1 << 20);
  CHECK(peak_resident_bytes() > 1 << 20);
}

TEST_CASE("cpu: cgroup v2, the tightest level counts") {
  TempDir dir;
  put(dir / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:  8000 kB\n");
  CHECK(available_memory(dir.path()) == 8000 * 1024);
  put(dir / "proc/self/cgroup", "0::/a/b\n");
  put(dir / "sys/fs/cgroup/a/cpu.max", "100000 100000\n");
  put(dir / "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(available_cores(dir.path()) == 1);
  put(dir / "sys/fs/cgroup/a/memory.max", "5000000\n");
  put(dir / "sys/fs/cgroup/a/memory.current", "4000000\n");
  put(dir / "sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 500000\n");
  put(dir / "sys/fs/cgroup/a/b/memory.max", "max\n");
  put(dir / "sys/fs/cgroup/a/b/memory.current", "10\n");
  CHECK(available_memory(dir.path()) == 1500000);
}

TEST_CASE("cpu: cgroup v1") {
  TempDir dir;
  put(dir / "proc/meminfo", "MemAvailable: 8000 kB\n");
  put(dir / "proc/self/cgroup", "3:cpu,cpuacct:/x\n2:memory:/x\n");
  put(dir / "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000\n");
  put(dir / "sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
  put(dir / "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "3000\n");
  put(dir / "sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1000\n");
  CHECK(available_cores(dir.path()) == 1);
  CHECK(available_memory(dir.path()) == 2000);
}

TEST_CASE("progress: plain lines without a terminal") {
  TempDir dir;
  std::FILE* out = std::fopen((dir / "log").c_str(), "w+");
  {
    Progress p(out, std::chrono::hours(1));
    CHECK(!p.terminal());
    for (int i = 0; i < 5; ++i) p.status("step " + std::to_string(i));
    p.line("sample");
  }
  std::rewind(out);
  std::string text(100, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), out));
  std::fclose(out);
  CHECK(text == "step 0\nsample\nstep 4\n");
  CHECK(format_seconds(3725) == "1h02m");
  CHECK(format_seconds(185) == "3m05s");
  CHECK(format_seconds(12.4) == "12s");
  CHECK(format_bytes(900) == "900 B");
  CHECK(format_bytes(1.5 * (1 << 30)) == "1.50 GiB");
}
