#include "ir/attr.h"

#include <fmt/ranges.h>

#include <cmath>
#include <cstdlib>

namespace moec {

AttrDef optional(std::string_view name, AttrValue value, std::string_view doc) {
  auto kind = AttrKind(value.index());
  return {name, kind, doc, /*required=*/false, std::move(value)};
}

double canonical_float(double x) {
  if (!std::isfinite(x) || x == std::floor(x)) return x;
  return std::strtod(fmt::format("{}", float(x)).c_str(), nullptr);
}

std::string to_string(const AttrValue& v) {
  switch (AttrKind(v.index())) {
    case AttrKind::Bool: return std::get<bool>(v) ? "true" : "false";
    case AttrKind::Int: return fmt::format("{}", std::get<i64>(v));
    case AttrKind::Float: {
      double x = std::get<double>(v);
      if (x == std::floor(x) && std::abs(x) < 1e15)
        return fmt::format("{:.0f}", x);
      return fmt::format("{}", x);
    }
    case AttrKind::String: {
      std::string s = "\"";
      for (char c : std::get<std::string>(v)) {
        if (c == '"' || c == '\\') s += '\\';
        s += c;
      }
      return s + '"';
    }
    case AttrKind::Ints:
      return fmt::format("[{}]", fmt::join(std::get<std::vector<i64>>(v), ","));
    case AttrKind::DType: return std::string(dtype_name(std::get<DType>(v)));
  }
  return {};
}

}  // namespace moec
