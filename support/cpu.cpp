#include "support/cpu.h"

#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace moec {
namespace fs = std::filesystem;
namespace {

// The first word of a file as a number; nothing for "max" or no file.
std::optional<double> number(const fs::path& file) {
  std::ifstream in(file);
  double v;
  if (in >> v) return v;
  return std::nullopt;
}

// The value after `key` in lines of "key value".
std::optional<double> field(const fs::path& file, const std::string& key) {
  std::ifstream in(file);
  std::string name, line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    double v;
    if (words >> name >> v && name == key) return v;
  }
  return std::nullopt;
}

// This process's cgroup folder of a v1 controller ("" for v2) and all above
// it, innermost first. In a container the path in /proc may not exist below
// the mount; the mount's own root then holds the limits.
std::vector<fs::path> cgroups(const fs::path& root, const std::string& v1) {
  std::ifstream in(root / "proc/self/cgroup");
  std::vector<fs::path> out;
  std::string line;
  while (std::getline(in, line)) {
    size_t a = line.find(':'), b = line.find(':', a + 1);
    if (a == std::string::npos || b == std::string::npos) continue;
    std::string names = "," + line.substr(a + 1, b - a - 1) + ",";
    bool match = v1.empty() ? names == ",,"
                            : names.find("," + v1 + ",") != std::string::npos;
    if (!match) continue;
    fs::path base = root / "sys/fs/cgroup" / v1;
    fs::path rel = fs::path(line.substr(b + 1)).relative_path();
    for (;; rel = rel.parent_path()) {
      out.push_back(base / rel);
      if (rel.empty()) break;
    }
  }
  return out;
}

}  // namespace

int available_cores(const fs::path& root) {
  cpu_set_t set;
  CPU_ZERO(&set);
  int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  double quota = n;
  for (auto& dir : cgroups(root, "")) {
    std::ifstream in(dir / "cpu.max");
    double share, period;
    if (in >> share >> period && period > 0)
      quota = std::min(quota, share / period);
  }
  for (auto& dir : cgroups(root, "cpu")) {
    auto share = number(dir / "cpu.cfs_quota_us");
    auto period = number(dir / "cpu.cfs_period_us");
    if (share && period && *share > 0 && *period > 0)
      quota = std::min(quota, *share / *period);
  }
  return std::max(1, std::min(n, int(std::ceil(quota))));
}

int64_t available_memory(const fs::path& root) {
  double kib = field(root / "proc/meminfo", "MemAvailable:").value_or(0);
  double bytes =
      kib > 0 ? kib * 1024 : double(std::numeric_limits<int32_t>::max());
  auto limit = [&](const fs::path& dir, const char* max, const char* used,
                   const char* cache) {
    auto m = number(dir / max), u = number(dir / used);
    if (m && u)
      bytes = std::min(bytes,
                       *m - *u + field(dir / "memory.stat", cache).value_or(0));
  };
  for (auto& dir : cgroups(root, ""))
    limit(dir, "memory.max", "memory.current", "inactive_file");
  for (auto& dir : cgroups(root, "memory"))
    limit(dir, "memory.limit_in_bytes", "memory.usage_in_bytes",
          "total_inactive_file");
  return int64_t(std::max(0.0, bytes));
}

int64_t peak_resident_bytes() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  return int64_t(u.ru_maxrss) * 1024;
}

}  // namespace moec
