// Any bytes as a .npy file: one clear error, or an array that lies within the
// file.
#include "runtime/npy.h"
#include "support/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  try {
    NpyArray a = read_npy(std::as_bytes(std::span(data, size)), "f");
    if (a.bytes < 1 || a.count < 0 || a.offset < 10 ||
        a.offset + a.count * a.bytes != int64_t(size))
      __builtin_trap();
  } catch (const UserError&) {
  }
  return 0;
}
