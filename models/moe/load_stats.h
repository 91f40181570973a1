// How evenly a layer's experts are used.
#pragma once
#include <span>

#include "ir/type.h"

namespace moec::moe {

struct LoadStats {
  double entropy = 0;  // of the shares, over log(experts): 1 is balanced
  i64 dead = 0;        // experts that nothing chose
  double least = 0, most = 0;  // shares
};

// `choices` of each expert of a layer.
LoadStats load_stats(std::span<const i64> choices);

}  // namespace moec::moe
