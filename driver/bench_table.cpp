#include "driver/bench_table.h"

#include <fmt/format.h>

#include <cstdio>

#include "codegen/cpu/bench_turns.h"

namespace moec {

BenchTable::BenchTable(std::string dtype, bool json) : json_(json) {
  all_["dtype"] = std::move(dtype);
}

void BenchTable::section(const std::string& title, const std::string& key) {
  key_ = key;
  all_[key] = nlohmann::ordered_json::array();
  if (json_) return;
  fmt::print("{}; one thread, shares of rates measured in the same run\n",
             title);
  fmt::print(
      "{:34} {:>10} {:>9} {:>6} {:>5} {:>8} {:>7} {:>8} {:>6} {:>8} {:>7}\n",
      "", "us", "GFLOP/s", "% peak", "GHz", "% cycles", "GB/s", "% stream",
      "tasks", "us/task", bench_turns() ? "speedup" : "");
}

void BenchTable::add(const BenchRow& r) {
  const double us = r.seconds * 1e6;
  const double task_us = us / double(std::max<int64_t>(r.tasks, 1));
  if (json_) {
    nlohmann::ordered_json row = {{"name", r.name}, {"us", us}};
    if (r.peak) {
      row["gflops"] = r.flops / r.seconds / 1e9;
      row["peak_fraction"] = r.peak_share();
      row["clock_ghz"] = r.cycles / r.seconds / 1e9;
      row["cycle_fraction"] = r.cycle_share();
    }
    if (r.stream) {
      row["gb_per_s"] = r.bytes / r.seconds / 1e9;
      row["stream_fraction"] = r.stream_share();
    }
    row["tasks"] = r.tasks;
    row["task_us"] = task_us;
    if (r.speedup) row["speedup"] = r.speedup;
    all_[key_].push_back(std::move(row));
    return;
  }
  auto number = [](double v, int digits) {
    return v ? fmt::format("{:.{}f}", v, digits) : std::string();
  };
  fmt::print(
      "{:34} {:>10.1f} {:>9} {:>6} {:>5} {:>8} {:>7} {:>8} {:>6} {:>8.1f} "
      "{:>7}\n",
      r.name, us, r.peak ? number(r.flops / r.seconds / 1e9, 1) : "",
      number(100 * r.peak_share(), 1),
      r.peak ? number(r.cycles / r.seconds / 1e9, 2) : "",
      number(100 * r.cycle_share(), 1),
      r.stream ? number(r.bytes / r.seconds / 1e9, 1) : "",
      number(100 * r.stream_share(), 1), r.tasks, task_us,
      number(r.speedup, 3));
  std::fflush(stdout);
}

void BenchTable::finish() const {
  if (json_) fmt::print("{}\n", all_.dump());
}

}  // namespace moec
