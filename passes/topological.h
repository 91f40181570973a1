// Restores the order of a graph whose nodes may stand before their operands.
#pragma once
#include "ir/graph.h"

namespace moec {

// Moves operands before their users; nodes stay in their given order where
// they can. Throws InternalError on a cycle.
void sort_topologically(Graph&);

}  // namespace moec
