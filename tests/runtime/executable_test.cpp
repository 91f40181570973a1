#include "runtime/executable.h"

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "support/cpu.h"
#include "support/json.h"
#include "tests/test.h"

using namespace moec;

namespace {

constexpr int64_t kBlock = 64;  // elements of one task

// c = a + b on kBlock floats, through the thread's scratch.
void add_kernel(std::byte* const* buffers, int64_t task, std::byte* scratch) {
  auto* a = reinterpret_cast<const float*>(buffers[0]) + task * kBlock;
  auto* b = reinterpret_cast<const float*>(buffers[1]) + task * kBlock;
  auto* c = reinterpret_cast<float*>(buffers[2]) + task * kBlock;
  auto* s = reinterpret_cast<float*>(scratch);
  for (int64_t i = 0; i < kBlock; ++i) s[i] = a[i] + b[i];
  std::memcpy(c, s, kBlock * sizeof(float));
}

TensorSpec spec(std::string name, int64_t n) {
  return {std::move(name), DType::F32, {n}, n * 4};
}

// y = (x + k) + x with x + k in the arena; p' = p + k in place.
std::shared_ptr<Program> make_program(int64_t tasks) {
  auto p = std::make_shared<Program>();
  int64_t n = tasks * kBlock;
  p->name = "f";
  p->inputs = {spec("x", n), spec("p", n)};
  p->outputs = {spec("y", n), spec("p2", n)};
  p->donated = {-1, 1};
  std::vector<float> k(size_t(n), 3.0f);
  auto bytes = std::as_bytes(std::span(k));
  p->constants.emplace_back(bytes.begin(), bytes.end());
  p->arena_bytes = 64 + n * 4;
  p->scratch_bytes = kBlock * 4;
  p->kernel_names = {"add"};
  BufferRef x{Space::Input, 0, 0}, param{Space::Input, 1, 0},
      y{Space::Output, 0, 0}, param2{Space::Output, 1, 0},
      three{Space::Constant, 0, 0}, temp{Space::Arena, 0, 64};
  auto launch = [&](std::vector<BufferRef> b, std::string label) {
    p->launches.push_back({add_kernel, std::move(b), tasks, kBlock * 4,
                           double(n), double(12 * n), 0, std::move(label)});
  };
  launch({x, three, temp}, "add layer0");
  launch({temp, x, y}, "add \"layer1\"");
  launch({param, three, param2}, "add p");
  return p;
}

}  // namespace

TEST_CASE("executable: joined launches get their own tasks and buffers") {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    auto program = make_program(40);
    // the last two in one go, the last one for some of p
    program->launches[2].joins = true;
    program->launches[2].tasks = 17;
    Executable f(program, pool);
    int64_t n = 40 * kBlock;
    Buffer x(n * 4), p(n * 4), y(n * 4);
    std::iota(x.as<float>().begin(), x.as<float>().end(), 0.0f);
    Executable::Bytes in[] = {x.bytes(), p.bytes()};
    Executable::Bytes out[] = {y.bytes(), p.bytes()};
    f.run(in, out);
    for (int64_t i = 0; i < n; ++i) {
      REQUIRE(y.as<float>()[size_t(i)] == float(2 * i + 3));
      REQUIRE(p.as<float>()[size_t(i)] == (i < 17 * kBlock ? 3.0f : 0.0f));
    }
  }
}

TEST_CASE("executable: arena, constants, donation, any number of threads") {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    auto space = std::make_shared<Workspace>();
    Executable small(make_program(2), pool, space);
    Executable f(make_program(40), pool, space);
    int64_t n = 40 * kBlock;
    Buffer x(n * 4), p(n * 4), y(n * 4);
    std::iota(x.as<float>().begin(), x.as<float>().end(), 0.0f);
    for (int call = 1; call <= 3; ++call) {
      Buffer sx(512), sp(512), sy(512);
      Executable::Bytes si[] = {sx.bytes(), sp.bytes()};
      Executable::Bytes so[] = {sy.bytes(), sp.bytes()};
      small.run(si, so);
      CHECK(sy.as<float>()[127] == 3.0f);
      Executable::Bytes in[] = {x.bytes(), p.bytes()};
      Executable::Bytes out[] = {y.bytes(), p.bytes()};
      f.run(in, out);
      for (int64_t i = 0; i < n; ++i) {
        REQUIRE(y.as<float>()[size_t(i)] == float(2 * i + 3));
        REQUIRE(p.as<float>()[size_t(i)] == 3.0f * float(call));
      }
    }
  }
}

TEST_CASE("executable: wrong buffers are refused") {
  ThreadPool pool(1);
  Executable f(make_program(1), pool);
  Buffer a(256), b(256), c(256), longer(512);
  using Bytes = Executable::Bytes;
  Bytes two[] = {a.bytes(), b.bytes()}, split[] = {c.bytes(), c.bytes()},
        wrong[] = {longer.bytes(), b.bytes()},
        odd[] = {longer.bytes().subspan(4, 256), b.bytes()};
  CHECK(error_of([&] { f.run(two, split); }).find("donated") !=
        std::string::npos);
  CHECK(error_of([&] {
          f.run(wrong, two);
        }).find("input %x needs 256 bytes, got 512") != std::string::npos);
  CHECK(error_of([&] { f.run(odd, two); }).find("not aligned") !=
        std::string::npos);
  CHECK(error_of([&] { f.run({}, two); }).find("takes 2 inputs") !=
        std::string::npos);
}

TEST_CASE("executable: trace as JSON and table") {
  ThreadPool pool(2);
  Executable f(make_program(4), pool);
  Trace trace;
  f.set_trace(&trace);
  int64_t n = 4 * kBlock;
  Buffer x(n * 4), p(n * 4), y(n * 4);
  Executable::Bytes in[] = {x.bytes(), p.bytes()};
  Executable::Bytes out[] = {y.bytes(), p.bytes()};
  f.run(in, out);
  auto doc = parse_json(trace.chrome_json(), "trace");
  REQUIRE(doc["traceEvents"].size() == 3);
  CHECK(doc["traceEvents"][1]["name"] == "add \"layer1\"");
  auto kernels = trace.by_kernel();
  REQUIRE(kernels.size() == 1);
  CHECK(kernels[0].calls == 3);
  CHECK(kernels[0].flops == 3.0 * double(n));
  CHECK(trace.table(1e9).find("add") != std::string::npos);
}

TEST_CASE("memory: the plan against what is free") {
  auto items = memory_items(*make_program(4), 3);
  int64_t sum = 0, n = 4 * kBlock * 4;
  for (auto& i : items) sum += i.bytes;
  // temp, constant, x, p, y (p2 reuses p); three scratch blocks.
  CHECK(sum == 64 + 5 * n + 3 * kBlock * 4);
  require_memory(items, sum);
  std::string why = error_of([&] { require_memory(items, sum - 1); });
  CHECK(why.find("not enough memory: needs 5.81 KiB, 5.81 KiB is free") !=
        std::string::npos);
  CHECK(why.find("temporaries of @f 1.06 KiB") != std::string::npos);
}

TEST_CASE("buffer: zeroed, aligned, movable; large ones in huge pages") {
  for (int64_t bytes : {0, 1, 100, 4 << 20, (2 << 20) + 12}) {
    Buffer b(bytes);
    CHECK(b.size() == bytes);
    CHECK(uintptr_t(b.data()) % (bytes >= (2 << 20) ? 2 << 20 : 64) == 0);
    for (std::byte v : b.bytes()) REQUIRE(v == std::byte{0});
    if (bytes) b.bytes().back() = std::byte{7};
    Buffer c = std::move(b);
    CHECK(b.data() == nullptr);
    if (bytes) CHECK(c.bytes().back() == std::byte{7});
  }
  CHECK(error_of([] { Buffer b(int64_t(1) << 60); }).find("out of memory") !=
        std::string::npos);
}
