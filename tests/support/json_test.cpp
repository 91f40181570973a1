#include "support/json.h"

#include <nlohmann/json.hpp>

#include "support/error.h"
#include "tests/test.h"

using namespace moec;

namespace {

std::string json_error(const std::string& text) {
  return error_of([&] { parse_json(text, "f", 100); });
}

}  // namespace

TEST_CASE("json: what is accepted") {
  auto v =
      parse_json(R"({"a":{"x":1},"b":{"x":2},"c":[{"x":3},{"x":4}]})", "f");
  CHECK(v["c"][1]["x"] == 4);
  CHECK(json_quote("a\"\n\xff") == "\"a\\\"\\n\xEF\xBF\xBD\"");
}

TEST_CASE("json: what is refused, with file and offset") {
  CHECK(json_error(R"({"a":1,"a":2})") == "f:107: the key \"a\" appears twice");
  CHECK(json_error(R"([{"k":{}},{"a":1,"b":[0],"a":2}])")
            .find("the key \"a\" appears twice") != std::string::npos);
  CHECK(json_error("{\"a\":1").rfind("f:106: not valid JSON", 0) == 0);
  CHECK(json_error("{} x").rfind("f:103: not valid JSON", 0) == 0);
  CHECK(json_error("\"\xff\"").find("not valid JSON") != std::string::npos);
  CHECK(json_error("").find("not valid JSON") != std::string::npos);
  CHECK(json_error(std::string(1000000, '[')).find("nested deeper") !=
        std::string::npos);
}
