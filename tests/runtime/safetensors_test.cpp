#include "runtime/safetensors.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>

#include "support/error.h"
#include "support/rng.h"
#include "tests/test.h"

using namespace moec;
namespace fs = std::filesystem;

namespace {

std::string file_text(const std::string& header, const std::string& data) {
  uint64_t n = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &n, 8);
  return out + header + data;
}

// The error of a file with this header and this many zero bytes of data.
std::string header_error(const std::string& header, size_t data) {
  TempDir dir;
  write_file_atomic(dir / "t.safetensors",
                    file_text(header, std::string(data, '\0')));
  std::string why = error_of([&] { Safetensors s(dir / "t.safetensors"); });
  std::string prefix = dir.path().string() + "/";
  return why.rfind(prefix, 0) == 0 ? why.substr(prefix.size()) : why;
}

std::string entry(const std::string& name, const std::string& dtype,
                  const std::string& shape, int64_t a, int64_t b) {
  return fmt::format(
      R"("{}":{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", name, dtype,
      shape, a, b);
}

std::vector<TensorView> some_tensors(const std::vector<std::byte>& data) {
  std::span<const std::byte> d(data);
  return {{"b.weight", DType::F32, {2, 3}, d.subspan(0, 24)},
          {"half", DType::BF16, {5}, d.subspan(24, 10)},
          {"a.weight", DType::F32, {1}, d.subspan(40, 4)},
          {"scalar", DType::I64, {}, d.subspan(48, 8)},
          {"none", DType::F32, {0, 7}, {}},
          {"flag", DType::Bool, {3}, d.subspan(60, 3)}};
}

std::vector<std::byte> bytes_of(size_t n) {
  std::vector<std::byte> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = std::byte(i * 7 + 1);
  return out;
}

}  // namespace

TEST_CASE("safetensors: round trip, canonical bytes, aligned data") {
  TempDir dir;
  auto data = bytes_of(64);
  auto tensors = some_tensors(data);
  write_safetensors(dir / "a", tensors, {{"format", "pt"}});
  std::reverse(tensors.begin(), tensors.end());
  write_safetensors(dir / "b", tensors, {{"format", "pt"}});
  CHECK(read_file(dir / "a") == read_file(dir / "b"));
  Safetensors s(dir / "a");
  CHECK(s.metadata().at("format") == "pt");
  REQUIRE(s.tensors().size() == tensors.size());
  for (auto& t : tensors) {
    auto got = s.require(t.name, t.dtype, t.dims);
    CHECK(std::ranges::equal(got, t.bytes));
  }
  // The widest type comes first, at the start of the data.
  CHECK(uintptr_t(s.find("scalar")->bytes.data()) % 64 == 0);
  CHECK(s.find("nothing") == nullptr);
  std::string why = error_of(
      [&] { s.require("b.weight", DType::F32, std::vector<int64_t>{3, 2}); });
  CHECK(why.find("tensor \"b.weight\" is F32[2,3], the model needs F32[3,2]") !=
        std::string::npos);
  CHECK(error_of([&] {
          s.require("x", DType::F32, {});
        }).find("has no tensor \"x\"") != std::string::npos);
}

TEST_CASE("safetensors: defects of the header") {
  std::string good = "{" + entry("a", "F32", "[2]", 0, 8) + "}";
  CHECK(header_error(good, 8) == "");
  CHECK(header_error("[]", 0) ==
        "t.safetensors:8: the header must begin with '{'");
  CHECK(header_error("{\"a\":", 0).find("not valid JSON") != std::string::npos);
  struct Case {
    std::string header;
    size_t data;
    const char* reason;
  };
  Case cases[] = {
      {"{" + entry("a", "F32", "[2]", 0, 8) + "," +
           entry("a", "F32", "[2]", 8, 16) + "}",
       16, "appears twice"},
      {"{" + entry("a", "F32", "[2]", 0, 8) + "," +
           entry("b", "F32", "[2]", 4, 12) + "}",
       12, "overlaps"},
      {"{" + entry("a", "F32", "[2]", 0, 8) + "," +
           entry("b", "F32", "[2]", 12, 20) + "}",
       20, "4 bytes before it belong to no tensor"},
      {good, 12, "4 bytes at the end belong to no tensor"},
      {good, 4, "lie outside the 4 bytes of data"},
      {"{" + entry("a", "F32", "[3]", 0, 8) + "}", 8,
       "F32[3] takes 12 bytes, data_offsets give 8"},
      {"{" + entry("a", "F31", "[2]", 0, 8) + "}", 8, "unknown dtype \"F31\""},
      {"{" + entry("a", "F32", "[-2]", 0, 8) + "}", 8,
       "shape must hold non-negative integers"},
      {"{" + entry("a", "F32", "[1e99]", 0, 8) + "}", 8,
       "shape must hold non-negative integers"},
      {"{" + entry("a", "F32", "[4611686018427387904,4]", 0, 8) + "}", 8,
       "overflows"},
      {"{" + entry("a", "F4", "[3]", 0, 2) + "}", 2, "takes 2 bytes"},
      {"{" + entry("a", "F32", "[2]", 8, 0) + "}", 8, "lie outside"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "exactly dtype"},
      {"{\"a\":[]}", 8, "exactly dtype"},
      {"{\"__metadata__\":{\"a\":1}}", 0, "object of strings"},
      {std::string(100000, '{'), 0, "not valid JSON"},
      {"{\"a\":" + std::string(100000, '['), 0, "nested deeper"}};
  for (auto& c : cases) {
    std::string why = header_error(c.header, c.data);
    INFO(c.header.substr(0, 200), " gave ", why);
    CHECK(why.rfind("t.safetensors:", 0) == 0);
    CHECK(why.find(c.reason) != std::string::npos);
  }
  // 4-bit types, whole bytes: readable, though no tensor of moec.
  CHECK(header_error("{" + entry("a", "F4", "[4]", 0, 2) + "}", 2) == "");
}

// Quadratic work over the header would take minutes here.
TEST_CASE("safetensors: a header of 100,000 tensors") {
  TempDir dir;
  std::vector<TensorView> many;
  auto data = bytes_of(4);
  for (int i = 0; i < 100000; ++i)
    many.push_back({"layer." + std::to_string(i), DType::F32, {1}, data});
  write_safetensors(dir / "t", many);
  Safetensors s(dir / "t");
  CHECK(s.tensors().size() == many.size());
  CHECK(s.find("layer.99999") != nullptr);
}

TEST_CASE("safetensors: files that are cut or lie about their size") {
  TempDir dir;
  auto at = [&](const std::string& text) {
    std::ofstream(dir / "f", std::ios::binary) << text;
    return error_of([&] { Safetensors s(dir / "f"); });
  };
  CHECK(at("").find("too few") != std::string::npos);
  CHECK(at("1234567").find("too few") != std::string::npos);
  CHECK(at(std::string(8, '\xff')).find("is truncated") != std::string::npos);
  CHECK(at(std::string("\x40\0\0\0\0\0\0\0{}", 10)).find("is truncated") !=
        std::string::npos);
  // Every truncation and many damaged copies of a good file: an error or a
  // file that reads, never anything else.
  auto data = bytes_of(64);
  write_safetensors(dir / "good", some_tensors(data));
  std::string good = read_file(dir / "good");
  for (size_t n = 0; n < good.size(); ++n) REQUIRE(at(good.substr(0, n)) != "");
  int rounds = long_tests() ? 200000 : 3000, refused = 0;
  for (int i = 0; i < rounds; ++i) {
    std::string bad = good;
    for (int k = 0; k < 3; ++k) {
      uint32_t r = random_word(11, uint64_t(i), k);
      bad[r % bad.size()] = char(r >> 24);
    }
    refused += at(bad) != "";
  }
  CHECK(refused > rounds / 2);
}

TEST_CASE("safetensors: shards and their index") {
  TempDir dir;
  auto data = bytes_of(64);
  auto t = some_tensors(data);
  write_safetensors(dir / "m-1.safetensors", std::span(t).subspan(0, 3));
  write_safetensors(dir / "m-2.safetensors", std::span(t).subspan(3));
  auto index = [&](const std::string& map) {
    write_file_atomic(dir / "model.safetensors.index.json",
                      "{\"weight_map\":{" + map + "}}");
    return error_of([&] { Safetensors s(dir.path()); });
  };
  std::string first = R"("b.weight":"m-1.safetensors",)"
                      R"("half":"m-1.safetensors",)"
                      R"("a.weight":"m-1.safetensors")";
  std::string second = R"(,"scalar":"m-2.safetensors",)"
                       R"("none":"m-2.safetensors","flag":"m-2.safetensors")";
  CHECK(index(first + second) == "");
  CHECK(Safetensors(dir.path()).tensors().size() == 6);
  CHECK(index(first + second + R"(,"more":"m-2.safetensors")")
            .find("tensor \"more\" is not in m-2.safetensors") !=
        std::string::npos);
  CHECK(index(first + R"(,"none":"m-2.safetensors","flag":"m-2.safetensors")")
            .find("does not list it") != std::string::npos);
  CHECK(index(R"("a":"../x")").find("bad file name") != std::string::npos);
  CHECK(index(R"("a":"gone")").find("cannot open") != std::string::npos);
  CHECK(index(R"("a":1)").find("must be a string") != std::string::npos);
}
