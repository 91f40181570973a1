// The kernel library: deduplication, the object cache, dumps, errors.
#include <filesystem>
#include <fstream>

#include "codegen/cpu/object_cache.h"
#include "tests/codegen/harness.h"
#include "tests/test.h"

namespace moec {
namespace {

KernelSpec store_number(int n) {
  return {.key = "store " + std::to_string(n), .emit = [n](Emit& e) {
            e.store(DType::I64, e.i(n), e.at(e.buffer(0), e.task(), 8));
          }};
}

int64_t call(KernelFn fn) {
  int64_t value = -1;
  std::byte* buffers[] = {reinterpret_cast<std::byte*>(&value)};
  fn(buffers, 0, nullptr);
  return value;
}

TEST_CASE("equal keys compile once") {
  KernelLibrary lib(host_target(), "");
  std::vector<KernelSpec> specs;
  for (int k = 0; k < 6; ++k) specs.push_back(store_number(k % 3));
  CompileStats stats;
  auto fns = lib.get(specs, &stats);
  CHECK(stats.kernels == 3);
  CHECK(stats.compiled == 3);
  for (int k = 0; k < 6; ++k) CHECK(call(fns[k]) == k % 3);
  CHECK((fns[0] == fns[3]));
  lib.get(specs, &stats);
  CHECK(stats.kernels == 3);
}

TEST_CASE("the object cache survives, and corrupted entries are rewritten") {
  TempDir dir;
  const std::string cache = dir.path();
  std::vector<KernelSpec> specs{store_number(7), store_number(8)};
  CompileStats first, second, third;
  {
    CHECK(call(KernelLibrary(host_target(), cache).get(specs, &first)[0]) == 7);
  }
  CHECK(first.compiled == 2);
  KernelLibrary again(host_target(), cache);
  CHECK(call(again.get(specs, &second)[1]) == 8);
  CHECK(second.compiled == 0);

  int spoiled = 0;
  for (auto& f : std::filesystem::directory_iterator(cache)) {
    CHECK(f.path().extension() == ".o");  // no temporary file stays
    std::fstream s(f.path(), std::ios::in | std::ios::out | std::ios::binary);
    if (spoiled++ == 0) {
      s.seekp(-9, std::ios::end);
      s.put('?');
    } else {
      s.close();
      std::filesystem::resize_file(f.path(), 40);
    }
  }
  KernelLibrary after(host_target(), cache);
  CHECK(call(after.get(specs, &third)[0]) == 7);
  CHECK(third.compiled == 2);
  CompileStats fourth;
  KernelLibrary(host_target(), cache).get(specs, &fourth);
  CHECK(fourth.compiled == 0);
}

TEST_CASE("dumps name the kernel") {
  KernelLibrary lib(host_target(), "");
  KernelSpec s = store_number(5);
  CHECK(lib.llvm_ir(s).find("define void @" + lib.symbol(s)) !=
        std::string::npos);
  CHECK(lib.assembly(s).find(lib.symbol(s) + ":") != std::string::npos);
}

TEST_CASE("an unknown feature level is a usage error") {
  CHECK_THROWS_AS(make_target("pentium"), UsageError);
}

}  // namespace
}  // namespace moec
