#include "models/moe/load_stats.h"

#include <algorithm>
#include <cmath>

namespace moec::moe {

LoadStats load_stats(std::span<const i64> choices) {
  LoadStats s;
  double total = 0;
  for (i64 n : choices) total += double(n);
  total = std::max(total, 1.0);
  s.least = 1;
  for (i64 n : choices) {
    double share = double(n) / total;
    s.dead += n == 0;
    if (n > 0) s.entropy -= share * std::log(share);
    s.least = std::min(s.least, share);
    s.most = std::max(s.most, share);
  }
  if (choices.size() > 1)
    s.entropy /= std::log(double(choices.size()));
  else
    s.entropy = 1;
  return s;
}

}  // namespace moec::moe
