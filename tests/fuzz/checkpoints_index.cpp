// Any bytes as model.safetensors.index.json beside two shards.
#include <unistd.h>

#include "runtime/safetensors.h"
#include "support/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moec;
  namespace fs = std::filesystem;
  static const fs::path folder = [] {
    auto f = fs::temp_directory_path() / fmt::format("moec-fuzz-{}", getpid());
    fs::create_directories(f);
    std::byte zeros[8] = {};
    for (std::string name : {"a", "b"})
      write_safetensors(f / name, std::vector{TensorView{
                                      "t" + name, DType::F32, {2}, zeros}});
    return f;
  }();
  auto path = folder / "model.safetensors.index.json";
  write_file_atomic(path, {reinterpret_cast<const char*>(data), size});
  try {
    // Only what names both shards' tensors and nothing else is whole.
    Safetensors file(folder);
    if (file.tensors().size() > 2) __builtin_trap();
  } catch (const UserError&) {
  }
  return 0;
}
