// The angles of rotary positions, in one place for the reference and the code
// generators: angle = float(position) * rope_frequency(...), in f32.
#pragma once
#include <cmath>
#include <cstdint>

namespace moec {

// theta^(-2i/D), rounded once to f32, for pair i of a head of width D.
inline float rope_frequency(double theta, int64_t i, int64_t width) {
  return float(std::pow(theta, -2.0 * double(i) / double(width)));
}

}  // namespace moec
