// .npy files and JSON lines: what is read, and one clear error for the rest.
#include <cstring>
#include <functional>

#include "runtime/jsonl.h"
#include "runtime/npy.h"
#include "runtime/token_source.h"
#include "support/error.h"
#include "tests/test.h"

namespace moec {
namespace {

std::string npy_header(const std::string& dict, char version = 1) {
  std::string s = std::string("\x93NUMPY") + version + '\0';
  size_t n = dict.size();
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i)
    s += char(n >> (8 * i) & 255);
  return s + dict;
}

template <class T>
std::string npy(const std::string& descr, const std::vector<T>& values,
                const std::string& shape, char version = 1) {
  auto s = npy_header("{'descr': '" + descr +
                          "', 'fortran_order': False, 'shape': " + shape +
                          ", }      \n",
                      version);
  return s.append(reinterpret_cast<const char*>(values.data()),
                  values.size() * sizeof(T));
}

NpyArray read(const std::string& bytes) {
  return read_npy(std::as_bytes(std::span(bytes)), "a.npy");
}

std::string npy_error(const std::string& bytes) {
  try {
    read(bytes);
  } catch (const UserError& e) {
    return e.what();
  }
  return {};
}

bool has(const std::string& text, std::string_view part) {
  CAPTURE(text);
  return text.find(part) != text.npos;
}

TEST_CASE("npy: integers of every width as token ids") {
  TempDir dir;
  auto ids = [&](const std::string& bytes) {
    write_file_atomic(dir / "a.npy", bytes);
    auto t = TokenSource::from_npy(dir / "a.npy");
    t.check_vocab(1 << 20);
    std::vector<int32_t> out(size_t(t.size()));
    t.copy(0, out);
    return out;
  };
  std::vector<int32_t> small = {3, 0, 7, 100};
  CHECK(ids(npy<uint8_t>("|u1", {3, 0, 7, 100}, "(4,)")) == small);
  CHECK(ids(npy<uint16_t>("<u2", {3, 0, 7, 100}, "(4,)")) == small);
  CHECK(ids(npy<int32_t>("<i4", {3, 0, 7, 100}, "(2, 2)", 2)) == small);
  std::vector<int32_t> large = {65536, 1000000};
  CHECK(ids(npy<uint32_t>("<u4", {65536, 1000000}, "(2,)")) == large);
  CHECK(ids(npy<int64_t>("<i8", {65536, 1000000}, "(2,)", 3)) == large);
  CHECK(ids(npy<uint64_t>("<u8", {65536, 1000000}, "(2,)")) == large);
}

TEST_CASE("npy: ids outside the vocabulary name their offset") {
  TempDir dir;
  auto complaint = [&](const std::string& bytes) {
    write_file_atomic(dir / "a.npy", bytes);
    return error_of(
        [&] { TokenSource::from_npy(dir / "a.npy").check_vocab(11); });
  };
  auto good = npy<int64_t>("<i8", {3, 10}, "(2,)");
  CHECK(complaint(good).empty());
  auto place = "a.npy:" + std::to_string(good.size() - 8) + ": token id ";
  CHECK(has(complaint(npy<int64_t>("<i8", {3, 11}, "(2,)")), place + "11 is"));
  CHECK(has(complaint(npy<int64_t>("<i8", {3, -1}, "(2,)")), place + "-1 is"));
  // One beyond 32 bits, whose low half is a valid id.
  CHECK(has(complaint(npy<int64_t>("<i8", {3, (int64_t(1) << 32) + 2}, "(2,)")),
            place + "4294967298 is"));
  CHECK(has(complaint(npy<int16_t>("<i2", {-3}, "(1,)")), "token id -3 is"));
  CHECK(has(complaint(npy<int16_t>("<i2", {}, "(0,)")), "array is empty"));
}

TEST_CASE("npy: what is no array of integers is one clear error") {
  auto good = npy<uint16_t>("<u2", {1, 2, 3}, "(3,)");
  CHECK(read(good).count == 3);
  CHECK(has(npy_error(good.substr(0, good.size() - 1)),
            "the file ends after 2 of 3 integers"));
  CHECK(has(npy_error(good + "x"), "1 bytes after the array's end"));
  CHECK(has(npy_error("PK\x03\x04"), "a.npy:0: is no .npy file"));
  CHECK(has(npy_error(""), "is no .npy file"));
  CHECK(has(npy_error(good.substr(0, 9)), "a.npy:9: the file ends within"));
  CHECK(has(npy_error(good.substr(0, 40)), "within its header"));
  CHECK(has(npy_error(npy<float>("<f4", {1}, "(1,)")), "holds <f4"));
  CHECK(has(npy_error(npy<uint16_t>(">u2", {1}, "(1,)")), "little-endian"));
  CHECK(has(npy_error(npy<uint16_t>("<u2", {}, "(99999999999999999999,)")),
            "expected a size"));
  CHECK(has(npy_error(npy<uint16_t>("<u2", {}, "(4294967296, 4294967296)")),
            "larger than any file"));
  CHECK(has(npy_error(npy<uint16_t>("<u2", {}, "(9223372036854775807,)")),
            "the file ends after 0 of"));
  auto fortran =
      npy_header("{'descr': '<u2', 'fortran_order': True, 'shape': (1, 2)}\n");
  CHECK(has(npy_error(fortran + "abcd"), "Fortran order"));
  CHECK(has(npy_error(npy_header("{'descr': '<u2'}\n")), "lacks"));
  CHECK(has(npy_error(npy_header("{'descr': [('a', '<u2')]}")),
            "expected a string"));
  CHECK(has(npy_error(npy_header("{'x': 1}")), "not a header"));
  auto other = good;
  other[6] = 4;
  CHECK(has(npy_error(other), "a.npy:6: .npy version 4"));
}

TEST_CASE("npy: no change of a header does anything but read or complain") {
  auto good = npy<uint16_t>("<u2", {1, 2, 3}, "(3,)");
  for (size_t i = 0; i < good.size(); ++i) {
    npy_error(good.substr(0, i));
    for (int bit = 0; bit < 8; ++bit) {
      auto changed = good;
      changed[i] = char(changed[i] ^ (1 << bit));
      npy_error(changed);
    }
  }
}

std::vector<std::string> lines_of(std::string_view text,
                                  const std::string& field = "text") {
  std::vector<std::string> out;
  for_each_json_line(text, "a.jsonl", field,
                     [&](std::string_view s) { out.emplace_back(s); });
  return out;
}

TEST_CASE("JSON lines: the field of each, in order") {
  CHECK(lines_of("{\"text\":\"a\\nb\"}\n\n  \r\n{\"id\":1,\"text\":\"\"}\r\n"
                 "{\"text\":\"\\u00e9\",\"x\":{\"text\":3}}") ==
        std::vector<std::string>{"a\nb", "", "\u00e9"});
  CHECK(lines_of("{\"body\":\"x\",\"text\":1}", "body") ==
        std::vector<std::string>{"x"});
  CHECK(lines_of("").empty());
}

TEST_CASE("JSON lines: a bad line is named") {
  auto complaint = [](const std::string& line) -> std::string {
    try {
      lines_of("{\"text\":\"a\"}\n\n" + line + "\n{\"text\":\"b\"}\n");
    } catch (const UserError& e) {
      return e.what();
    }
    return {};
  };
  CHECK(complaint("{\"text\":\"c\"}").empty());
  CHECK(has(complaint("{\"text\":\"a"), "a.jsonl:3:10: not valid JSON"));
  CHECK(has(complaint("{\"text\":\"a\"} {}"), "a.jsonl:3:13: not valid JSON"));
  CHECK(has(complaint("{\"text\":\"\xff\"}"), "a.jsonl:3:9: not valid JSON"));
  CHECK(has(complaint("[1]"), "a.jsonl:3:0: a line must be a JSON object"));
  CHECK(has(complaint("{\"txt\":\"a\"}"), "a.jsonl:3:0: the object has no"));
  CHECK(has(complaint("{\"text\":3}"), "is not a string but number"));
  CHECK(has(complaint("{\"text\":\"a\",\"text\":\"b\"}"), "appears twice"));
  CHECK(has(complaint(std::string(100, '[')), "nested deeper"));
}

TEST_CASE("sources joined: copies and parts cross the borders") {
  TempDir dir;
  write_file_atomic(dir / "a.npy", npy<int64_t>("<i8", {3, 4, 5}, "(3,)"));
  TokenBuffer buffer(100);
  std::vector<uint32_t> more = {6, 7};
  buffer.append(more);
  buffer.append(more);
  auto all = TokenSource::join({TokenSource({0, 1, 2}), TokenSource(),
                                TokenSource::from_npy(dir / "a.npy"),
                                std::move(buffer).finish()});
  const std::vector<int32_t> expected = {0, 1, 2, 3, 4, 5, 6, 7, 6, 7};
  REQUIRE(all.size() == 10);
  for (int64_t begin = 0; begin <= 10; ++begin)
    for (int64_t end = begin; end <= 10; ++end) {
      std::vector<int32_t> direct(size_t(end - begin)), parted = direct;
      all.copy(begin, direct);
      auto part = all.part(begin, end - begin);
      REQUIRE(part.size() == end - begin);
      part.copy(0, parted);
      std::vector<int32_t> want(expected.begin() + begin,
                                expected.begin() + end);
      CHECK(direct == want);
      CHECK(parted == want);
    }
  all.check_vocab(8);
  CHECK_THROWS_AS(all.check_vocab(7), UserError);
}

TEST_CASE("a token buffer is wide where the vocabulary is") {
  for (int64_t vocab : {65536, 65537}) {
    TokenBuffer buffer(vocab);
    std::vector<uint32_t> ids = {uint32_t(vocab - 1), 0};
    buffer.append(ids);
    auto t = std::move(buffer).finish();
    std::vector<int32_t> out(2);
    t.copy(0, out);
    CHECK(out[0] == vocab - 1);
    CHECK(out[1] == 0);
  }
}

}  // namespace
}  // namespace moec
