#include "runtime/trace.h"

#include <fmt/core.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "runtime/abi.h"
#include "support/json.h"

namespace moec {

void Trace::add(const Program& p, const Launch& l, double start, double end) {
  auto k = size_t(l.kernel);
  spans_.push_back({l.label,
                    k < p.kernel_names.size() ? p.kernel_names[k] : l.label,
                    p.name, start, end, l.flops, l.bytes, l.tasks});
}

std::vector<KernelTime> Trace::by_kernel() const {
  std::map<std::string, KernelTime> sum;
  for (auto& s : spans_) {
    KernelTime& k = sum[s.kernel];
    k.kernel = s.kernel;
    ++k.calls;
    k.seconds += s.end - s.start;
    k.flops += s.flops;
    k.bytes += s.bytes;
  }
  std::vector<KernelTime> out;
  for (auto& [name, k] : sum) out.push_back(k);
  std::stable_sort(out.begin(), out.end(),
                   [](auto& a, auto& b) { return a.seconds > b.seconds; });
  return out;
}

std::string Trace::table(double peak_flops) const {
  auto kernels = by_kernel();
  double total = 0;
  for (auto& k : kernels) total += k.seconds;
  std::string out = fmt::format("{:<40} {:>6} {:>9} {:>6} {:>8} {:>7}{}\n",
                                "kernel", "calls", "ms", "time", "GFLOP/s",
                                "GB/s", peak_flops > 0 ? "   peak" : "");
  auto row = [&](const std::string& name, int64_t calls, double seconds,
                 double flops, double bytes) {
    double s = std::max(seconds, 1e-12);
    fmt::format_to(std::back_inserter(out),
                   "{:<40} {:>6} {:>9.3f} {:>5.1f}% {:>8.1f} {:>7.1f}", name,
                   calls, seconds * 1e3, 100 * seconds / std::max(total, 1e-12),
                   flops / s / 1e9, bytes / s / 1e9);
    if (peak_flops > 0)
      fmt::format_to(std::back_inserter(out), " {:>5.1f}%",
                     100 * flops / s / peak_flops);
    out += '\n';
  };
  int64_t calls = 0;
  double flops = 0, bytes = 0;
  for (auto& k : kernels) {
    row(k.kernel, k.calls, k.seconds, k.flops, k.bytes);
    calls += k.calls, flops += k.flops, bytes += k.bytes;
  }
  row("total", calls, total, flops, bytes);
  return out;
}

std::string Trace::chrome_json() const {
  std::string out = "{\"traceEvents\":[";
  double zero = spans_.empty() ? 0 : spans_.front().start;
  for (size_t i = 0; i < spans_.size(); ++i) {
    auto& s = spans_[i];
    fmt::format_to(
        std::back_inserter(out),
        "{}\n{{\"name\":{},\"cat\":{},\"ph\":\"X\",\"pid\":0,\"tid\":0,"
        "\"ts\":{:.3f},\"dur\":{:.3f},\"args\":{{\"kernel\":{},"
        "\"tasks\":{},\"gflop\":{:.6f},\"mbyte\":{:.6f}}}}}",
        i ? "," : "", json_quote(s.label), json_quote(s.function),
        (s.start - zero) * 1e6, (s.end - s.start) * 1e6, json_quote(s.kernel),
        s.tasks, s.flops / 1e9, s.bytes / 1e6);
  }
  return out + "\n]}\n";
}

}  // namespace moec
