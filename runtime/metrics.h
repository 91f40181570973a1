// metrics.jsonl: one JSON object a line, "step" first, one line a step. A run
// that resumes continues it without gap or repeat.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace moec {

// A named number; NaN and infinities become null.
using Metric = std::pair<std::string, double>;
// A named value of another kind, as JSON text.
using JsonMetric = std::pair<std::string, std::string>;

class MetricsWriter {
 public:
  // Opens or creates the file, keeps the lines of steps <= `step` and drops
  // the rest, a torn last line included. A UserError `file:line: reason` for
  // a line that is no metrics line.
  MetricsWriter(std::filesystem::path file, int64_t step);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  // Appends one line in one write. On a UserError (a full disk) the file is as
  // it was.
  void write(int64_t step, std::span<const Metric> metrics,
             std::span<const JsonMetric> more = {});
  // Makes the lines so far durable: before the checkpoint of their step.
  void sync();

 private:
  std::filesystem::path file_;
  int fd_ = -1;
};

struct MetricsLine {
  int64_t step = 0;
  std::vector<Metric> metrics;  // numbers but "step", by name; null is NaN
};

// All whole lines; a torn last one is left out.
std::vector<MetricsLine> read_metrics(const std::filesystem::path& file);

}  // namespace moec
