// Attributes: the static arguments of an op. An op's definition lists them
// with kind and default; a node holds one value per listed attribute, in that
// order, so printing, hashing and comparing need nothing per op.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "ir/type.h"

namespace moec {

enum class AttrKind : uint8_t { Bool, Int, Float, String, Ints, DType };

// Alternatives in the order of AttrKind. A Float holds what its shortest f32
// decimal says (integers are kept exactly), so text round trips.
using AttrValue =
    std::variant<bool, i64, double, std::string, std::vector<i64>, DType>;

struct AttrDef {
  std::string_view name;
  AttrKind kind;
  std::string_view doc;
  bool required = true;  // false: `value` is the default, and is not printed
  AttrValue value = false;
  bool shown = false;  // printed even at its default
};

inline AttrDef required(std::string_view name, AttrKind kind,
                        std::string_view doc) {
  return {name, kind, doc};
}
AttrDef optional(std::string_view name, AttrValue value, std::string_view doc);
inline AttrDef shown(AttrDef a) {
  a.shown = true;
  return a;
}

// What callers give when they make a node.
using AttrList = std::vector<std::pair<std::string_view, AttrValue>>;

// The nearest value that survives a print and a parse.
double canonical_float(double);
// "0.17677669", "[1,2]", "f32", "\"gelu\""; true and false for a bool.
std::string to_string(const AttrValue&);

}  // namespace moec
