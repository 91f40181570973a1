// The output of every bench of kernels: a table for people, line by line, or
// one JSON object.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "codegen/cpu/kernel_bench.h"

namespace moec {

class BenchTable {
 public:
  BenchTable(std::string dtype, bool json);
  // Rows that follow stand under this title, and in the array `key`.
  void section(const std::string& title, const std::string& key);
  void add(const BenchRow&);
  // Prints the object {dtype, key: [...], ...}, if JSON was asked for.
  void finish() const;

 private:
  nlohmann::ordered_json all_;
  std::string key_;
  bool json_;
};

}  // namespace moec
