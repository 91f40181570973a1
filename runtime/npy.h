// Headers of NumPy's .npy files (NEP 1, versions 1 to 3) that hold integers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace moec {

struct NpyArray {
  int bytes = 0;  // of one integer: 1, 2, 4 or 8, little-endian
  bool is_signed = false;
  int64_t offset = 0;  // of the first, from the file's start
  int64_t count = 0;   // of all axes, in C order
};

// Reads the header of a whole file's bytes and holds it against their number.
// A UserError `name:offset: reason` for anything else than a little-endian
// array of integers in C order.
NpyArray read_npy(std::span<const std::byte> file, const std::string& name);

}  // namespace moec
