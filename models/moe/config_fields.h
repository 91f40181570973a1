// The table of config keys: name, place and rule of each.
#pragma once
#include <limits>
#include <optional>
#include <variant>

#include "models/moe/config.h"

namespace moec::moe {

struct Field {
  using Target = std::variant<i64*, double*, bool*, std::string*,
                              std::vector<i64>*, std::vector<std::string>*,
                              Biases*, std::map<std::string, i64>*,
                              std::map<std::string, std::string>*>;
  std::string_view section, key;
  Target target;
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  std::vector<std::string_view> allowed = {};  // of a string; empty: any
};

// All keys in the order of to_toml.
std::vector<Field> fields(Config& config);
// One that must exist: "model.vocab".
Field find_field(Config& config, std::string_view name);

}  // namespace moec::moe
