#include "support/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace moec {
namespace {

using Clock = std::chrono::steady_clock;

size_t terminal_width(std::FILE* out) {
  winsize w{};
  if (ioctl(fileno(out), TIOCGWINSZ, &w) == 0 && w.ws_col > 1) return w.ws_col;
  return 80;
}

}  // namespace

Progress::Progress(std::FILE* out, std::chrono::milliseconds interval)
    : out_(out), interval_(interval), terminal_(isatty(fileno(out)) == 1) {}

Progress::~Progress() { finish(); }

void Progress::status(std::string_view text) {
  status_ = text;
  pending_ = true;
  auto gap = terminal_ ? std::chrono::milliseconds(100) : interval_;
  if (shown_any_ && Clock::now() - last_ < gap) return;
  draw();
}

void Progress::draw() {
  if (terminal_) {
    // Cut at a character's border: bytes 10xxxxxx continue one.
    size_t n = std::min(status_.size(), terminal_width(out_) - 1);
    while (n < status_.size() && n > 0 && (status_[n] & 0xC0) == 0x80) --n;
    fmt::print(out_, "\r{}\033[K", std::string_view(status_).substr(0, n));
    drawn_ = true;
  } else {
    fmt::print(out_, "{}\n", status_);
  }
  std::fflush(out_);
  last_ = Clock::now();
  pending_ = false;
  shown_any_ = true;
}

void Progress::line(std::string_view text) {
  if (drawn_) fmt::print(out_, "\r\033[K");
  fmt::print(out_, "{}\n", text);
  std::fflush(out_);
  if (std::exchange(drawn_, false)) draw();
}

void Progress::finish() {
  if (pending_) draw();
  if (drawn_) fmt::print(out_, "\n");
  std::fflush(out_);
  drawn_ = false;
}

std::string format_seconds(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  auto s = int64_t(std::llround(seconds));
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

std::string format_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int u = 0;
  for (; bytes >= 1024 && u < 4; ++u) bytes /= 1024;
  if (u == 0) return fmt::format("{:.0f} B", bytes);
  return fmt::format("{:.{}f} {}", bytes,
                     bytes < 10    ? 2
                     : bytes < 100 ? 1
                                   : 0,
                     units[u]);
}

}  // namespace moec
