// A graph as its launches, for measuring single operations: what the standard
// passes and the CPU's lowerings make of it, every value in memory of its own,
// arguments random. An output with an argument's name shares its memory.
#pragma once
#include <memory>
#include <string_view>
#include <vector>

#include "codegen/cpu/kernel_bench.h"
#include "ir/graph.h"

namespace moec {

class GraphBench {
 public:
  // `ids`: integer arguments are drawn from [0, ids).
  GraphBench(KernelLibrary&, std::unique_ptr<Graph>, int64_t ids = 1);
  ~GraphBench();

  // The launches of nodes whose scope is `scope`, in order; of all nodes if it
  // is empty. Everything has run once by then.
  std::vector<BoundLaunch> launches(std::string_view scope = {}) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> p_;
};

}  // namespace moec
