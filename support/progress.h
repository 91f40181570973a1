// A status line on stderr: redrawn in place on a terminal; elsewhere plain
// lines, few of them.
#pragma once
#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

namespace moec {

class Progress {
 public:
  // `out` must outlive this. Without a terminal a status is printed at most
  // every `interval`, and the last one at the end.
  explicit Progress(
      std::FILE* out = stderr,
      std::chrono::milliseconds interval = std::chrono::seconds(10));
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  bool terminal() const { return terminal_; }
  // The current state in one line; drawn at most 10 times a second, cut to
  // the terminal's width.
  void status(std::string_view text);
  // A line that stays (or several: a sample of text), above the status.
  void line(std::string_view text);
  // Shows the last status, if it was held back, and ends its line.
  void finish();

 private:
  void draw();

  std::FILE* out_;
  std::chrono::milliseconds interval_;
  std::chrono::steady_clock::time_point last_{};
  std::string status_;
  bool terminal_ = false, drawn_ = false, pending_ = false, shown_any_ = false;
};

// "1h02m", "3m05s", "12s": for times that remain.
std::string format_seconds(double seconds);
// "1.50 GiB", "12.0 MiB", "900 B".
std::string format_bytes(double bytes);

}  // namespace moec
