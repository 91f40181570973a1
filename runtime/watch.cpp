#include "runtime/watch.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

namespace moec {
namespace {

template <class T, class ToDouble>
void scan(const WatchedResult& r, ToDouble value, NonFinite& found) {
  found.elements = int64_t(r.bytes.size() / sizeof(T));
  for (int64_t i = 0; i < found.elements; ++i) {
    T word;
    std::memcpy(&word, r.bytes.data() + size_t(i) * sizeof(T), sizeof(T));
    double x = value(word);
    if (std::isfinite(x) || x < 0) continue;
    if (found.bad++ > 0) continue;
    found.element = i;
    found.value = x;
  }
}

}  // namespace

void NonFiniteWatch::operator()(const WatchedResult& r) {
  if (first_ || !is_float(r.dtype)) return;
  NonFinite found{std::string(r.label), std::string(r.source)};
  auto same = [](auto x) { return double(x); };
  switch (r.dtype) {
    case DType::F64: scan<double>(r, same, found); break;
    case DType::F32: scan<float>(r, same, found); break;
    case DType::BF16: scan<uint16_t>(r, bf16_to_f32, found); break;
    default: scan<uint16_t>(r, f16_to_f32, found);
  }
  if (found.bad > 0) first_ = std::move(found);
}

std::string to_string(const NonFinite& f) {
  return fmt::format("{}{}: {} of {} values, the first one ({}) at element {}",
                     f.label, f.source.empty() ? "" : " (" + f.source + ")",
                     f.bad, f.elements, std::isnan(f.value) ? "nan" : "inf",
                     f.element);
}

}  // namespace moec
