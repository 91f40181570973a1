// The built-in text.
#include "models/moe/chronicle.h"

#include <array>
#include <cmath>
#include <set>

#include "tests/test.h"

namespace moec::moe {
namespace {

TEST_CASE("the chronicle is a function of seed and length") {
  auto a = chronicle({.seed = 1, .bytes = 20000});
  CHECK(a == chronicle({.seed = 1, .bytes = 20000}));
  CHECK(a != chronicle({.seed = 2, .bytes = 20000}));
  CHECK(a.size() >= 20000);
  CHECK(a.size() < 30000);
  // A longer one begins with the shorter one.
  CHECK(chronicle({.seed = 1, .bytes = 40000}).starts_with(a));
}

TEST_CASE("the chronicle varies: hardly a sentence comes twice") {
  auto text = chronicle({});
  CHECK(text.find('{') == text.npos);
  std::set<std::string> sentences;
  size_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) {
    size_t end = std::min(text.find(". ", at), text.size());
    sentences.insert(text.substr(at, end - at));
    at = end + 2;
  }
  CHECK(double(sentences.size()) > 0.7 * double(count));
}

}  // namespace
}  // namespace moec::moe
