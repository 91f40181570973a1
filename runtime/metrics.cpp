#include "runtime/metrics.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>

#include "support/error.h"
#include "support/file.h"
#include "support/json.h"

namespace moec {
namespace fs = std::filesystem;
namespace {

MetricsLine parse_line(std::string_view line, const std::string& where) {
  nlohmann::json v = parse_json(line, where);
  if (!v.is_object() || !v.contains("step") || !v["step"].is_number_unsigned())
    user_error("{}: not a line of metrics with a \"step\"", where);
  MetricsLine m{v["step"].get<int64_t>(), {}};
  for (const auto& [name, value] : v.items())
    if (name != "step" && (value.is_number() || value.is_null()))
      m.metrics.emplace_back(name, value.is_null() ? NAN : value.get<double>());
  return m;
}

// Calls fn(line text, parsed line) for each line that ends in '\n'.
template <class F>
void for_each_line(const fs::path& file, std::string_view text, F fn) {
  int64_t number = 1;
  for (size_t end; (end = text.find('\n')) != text.npos; ++number) {
    std::string_view line = text.substr(0, end + 1);
    fn(line, parse_line(line, fmt::format("{}:{}", file.string(), number)));
    text.remove_prefix(end + 1);
  }
}

}  // namespace

MetricsWriter::MetricsWriter(fs::path file, int64_t step)
    : file_(std::move(file)) {
  if (fs::exists(file_)) {
    std::string old = read_file(file_), kept;
    for_each_line(file_, old, [&](std::string_view line, MetricsLine m) {
      if (m.step <= step) kept += line;
    });
    if (kept != old) write_file_atomic(file_, kept);
  }
  fd_ = open(file_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0)
    user_error("{}: cannot open: {}", file_.string(), std::strerror(errno));
}

MetricsWriter::~MetricsWriter() { close(fd_); }

void MetricsWriter::write(int64_t step, std::span<const Metric> metrics,
                          std::span<const JsonMetric> more) {
  std::string line = fmt::format("{{\"step\":{}", step);
  for (auto& [name, value] : metrics) {
    auto out = std::back_inserter(line);
    fmt::format_to(out, ",{}:", json_quote(name));
    if (std::isfinite(value))
      fmt::format_to(out, "{}", value);
    else
      line += "null";
  }
  for (auto& [name, text] : more)
    fmt::format_to(std::back_inserter(line), ",{}:{}", json_quote(name), text);
  line += "}\n";
  off_t before = lseek(fd_, 0, SEEK_END);
  ssize_t n = ::write(fd_, line.data(), line.size());
  if (n == ssize_t(line.size())) return;
  int e = n < 0 ? errno : ENOSPC;
  if (ftruncate(fd_, before) != 0) e = errno;
  user_error("{}: cannot append a line: {}", file_.string(), std::strerror(e));
}

void MetricsWriter::sync() {
  if (fsync(fd_) != 0)
    user_error("{}: cannot fsync: {}", file_.string(), std::strerror(errno));
}

std::vector<MetricsLine> read_metrics(const fs::path& file) {
  std::vector<MetricsLine> lines;
  for_each_line(file, read_file(file), [&](std::string_view, MetricsLine m) {
    lines.push_back(std::move(m));
  });
  return lines;
}

}  // namespace moec
