// Random valid graphs: what passes and backends are compared on.
#pragma once
#include <cstdint>
#include <memory>

#include "ir/graph.h"

namespace moec {

// A graph of about `nodes` ops on arguments x0, x1, ... (f32, 6x8 and what
// broadcasts to it), with numbers that stay near 1, and its loss; with the
// gradients of the arguments if asked. The same for the same seed.
std::unique_ptr<Graph> random_graph(uint64_t seed, int nodes, bool gradients);

}  // namespace moec
