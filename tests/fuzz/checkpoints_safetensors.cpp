// Any bytes as a safetensors file: one clear error, or tensors whose bytes can
// all be read and that are written back the same.
#include "runtime/safetensors.h"
#include "support/error.h"
#include "tests/fuzz/temp_folder.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  static const TempFolder folder;
  auto path = folder.path / "t.safetensors";
  auto again = folder.path / "u.safetensors";
  write_file_atomic(path, {reinterpret_cast<const char*>(data), size});
  try {
    Safetensors file(path);
    std::vector<TensorView> views;
    for (auto& t : file.tensors()) {
      if (file.find(t.name) != &t) __builtin_trap();
      if (t.dtype) views.push_back({t.name, *t.dtype, t.dims, t.bytes});
    }
    write_safetensors(again, views, file.metadata());
    Safetensors back(again);
    for (auto& v : views) {
      auto bytes = back.require(v.name, v.dtype, v.dims);
      if (!std::equal(bytes.begin(), bytes.end(), v.bytes.begin(),
                      v.bytes.end()))
        __builtin_trap();
    }
  } catch (const UserError&) {
  }
  return 0;
}
