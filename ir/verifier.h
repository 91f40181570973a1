// Checks a graph: operands before users, users consistent, attributes as
// defined, result types as inferred again, argument names unique. Throws
// InternalError naming the node and `after` (the pass that made it).
#pragma once
#include <string_view>

#include "ir/graph.h"

namespace moec {

void verify(const Graph&, std::string_view after = "construction");

}  // namespace moec
