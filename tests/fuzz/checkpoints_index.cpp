// Any bytes as model.safetensors.index.json beside two shards.
#include "runtime/safetensors.h"
#include "support/error.h"
#include "tests/fuzz/temp_folder.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  static const TempFolder folder;
  static const bool ready = [] {
    std::byte zeros[8] = {};
    for (std::string name : {"a", "b"})
      write_safetensors(
          folder.path / name,
          std::vector{TensorView{"t" + name, DType::F32, {2}, zeros}});
    return true;
  }();
  (void)ready;
  auto path = folder.path / "model.safetensors.index.json";
  write_file_atomic(path, {reinterpret_cast<const char*>(data), size});
  try {
    // Only what names both shards' tensors and nothing else is whole.
    Safetensors file(folder.path);
    if (file.tensors().size() > 2) __builtin_trap();
  } catch (const UserError&) {
  }
  return 0;
}
