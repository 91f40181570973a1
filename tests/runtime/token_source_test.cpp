#include "runtime/token_source.h"

#include <algorithm>
#include <csignal>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "runtime/signals.h"
#include "support/error.h"
#include "support/rng.h"
#include "tests/test.h"

using namespace moec;

namespace {

// Tokens 0, 1, 2, ...: an id is its own place.
TokenSource counting(int64_t n) {
  std::vector<int32_t> ids(size_t(n), 0);
  std::iota(ids.begin(), ids.end(), 0);
  return TokenSource(std::move(ids));
}

}  // namespace

TEST_CASE("permute: a permutation for every size, another for each stream") {
  for (uint64_t size : {1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097}) {
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < size; ++i) {
      uint64_t p = permute(i, size, 42, 7);
      REQUIRE(p < size);
      seen.insert(p);
    }
    CHECK(seen.size() == size);
  }
  int same = 0, fixed = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same += permute(i, 1000, 42, 0) == permute(i, 1000, 42, 2);
    fixed += permute(i, 1000, 42, 0) == i;
  }
  CHECK(same < 10);
  CHECK(fixed < 10);
}

// Each of the 24 orders of 4 items about equally often, over many streams.
TEST_CASE("permute: orders are uniform") {
  std::map<uint64_t, int> count;
  const int n = 24000;
  for (int s = 0; s < n; ++s) {
    uint64_t order = 0;
    for (uint64_t i = 0; i < 4; ++i)
      order = order * 4 + permute(i, 4, 9, uint64_t(s));
    ++count[order];
  }
  CHECK(count.size() == 24);
  double chi2 = 0;
  for (auto& [order, c] : count) chi2 += (c - 1000.0) * (c - 1000.0) / 1000;
  CHECK(chi2 < 60);  // 23 degrees of freedom: p = 4e-5
}

TEST_CASE("train windows: an epoch takes each window once") {
  for (int64_t n : {9, 10, 17, 100, 1003}) {
    const int64_t seq = 8;
    TrainWindows w(counting(n), seq, 3);
    int64_t per = w.windows_per_epoch();
    std::set<int64_t> offsets;
    for (int64_t epoch = 0; epoch < 50; ++epoch) {
      std::set<int64_t> starts;
      for (int64_t k = 0; k < per; ++k)
        starts.insert(w.window_start(epoch * per + k));
      CHECK(int64_t(starts.size()) == per);
      CHECK(*starts.begin() >= 0);
      CHECK(*starts.rbegin() + seq + 1 <= n);
      CHECK(*starts.rbegin() - *starts.begin() == (per - 1) * seq);
      offsets.insert(*starts.begin());
    }
    // Every offset below seq turns up, where the text has room for it.
    CHECK(int64_t(offsets.size()) == std::min(seq, n - 1 - per * seq + 1));
  }
  CHECK(error_of([] {
          TrainWindows w(counting(8), 8, 0);
        }).find("one window of train.seq = 8 needs 9") != std::string::npos);
}

TEST_CASE("train windows: a batch is a function of its number") {
  TrainWindows w(counting(1000), 16, 5), other(counting(1000), 16, 6);
  TokenBatch b = w.batch(37, 4);
  CHECK(b.predicted == 64);
  for (size_t i = 0; i < b.tokens.size(); ++i)
    CHECK(b.targets[i] == b.tokens[i] + 1);
  CHECK(w.batch(37, 4).tokens == b.tokens);
  CHECK(w.batch(38, 4).tokens != b.tokens);
  CHECK(other.batch(37, 4).tokens != b.tokens);
  // Two half batches are the whole one.
  TokenBatch half = w.batch(75, 2);
  CHECK(std::equal(half.tokens.begin(), half.tokens.end(),
                   b.tokens.begin() + 32));
}

TEST_CASE("eval windows: every token but the first, once, tail included") {
  for (int64_t n : {2, 8, 9, 10, 40, 41, 42}) {
    EvalWindows w(counting(n), 8);
    std::vector<int32_t> seen;
    int64_t predicted = 0;
    for (int64_t i = 0; i < w.batches(3); ++i) {
      TokenBatch b = w.batch(i, 3);
      predicted += b.predicted;
      for (size_t t = 0; t < b.targets.size(); ++t)
        if (b.targets[t] >= 0) {
          seen.push_back(b.targets[t]);
          CHECK(b.targets[t] == b.tokens[t] + 1);
        } else {
          CHECK(b.tokens[t] == 0);
        }
    }
    CHECK(predicted == n - 1);
    std::vector<int32_t> all(size_t(n - 1));
    std::iota(all.begin(), all.end(), 1);
    CHECK(seen == all);
  }
  CHECK(error_of([] {
          EvalWindows w(counting(1), 8);
        }).find("at least 2 tokens") != std::string::npos);
}

TEST_CASE("token files: u16 and u32, split, errors") {
  TempDir dir;
  std::vector<uint16_t> small = {1, 65535, 3, 4, 5, 6, 7, 8, 9, 10};
  std::vector<uint32_t> large = {1, 70000, 3};
  auto put = [&](const char* name, auto& v) {
    write_file_atomic(dir / name, {reinterpret_cast<const char*>(v.data()),
                                   v.size() * sizeof v[0]});
  };
  put("a.bin", small);
  put("b.bin", large);
  TokenSource a = TokenSource::from_bin(dir / "a.bin", 2);
  CHECK(a.size() == 10);
  auto [train, val] = split_tokens(a, 0.1);
  CHECK(train.size() == 9);
  int32_t last = 0;
  val.copy(0, {&last, 1});
  CHECK(last == 10);
  a.check_vocab(65536);
  std::string why = error_of([&] { a.check_vocab(65535); });
  CHECK(why.find("a.bin:2: token id 65535 is outside the vocabulary") !=
        std::string::npos);
  TokenSource b = TokenSource::from_bin(dir / "b.bin", 4);
  int32_t ids[3];
  b.copy(0, ids);
  CHECK(ids[1] == 70000);
  write_file_atomic(dir / "c.bin", "123");
  CHECK(error_of([&] {
          TokenSource::from_bin(dir / "c.bin", 2);
        }).find("c.bin:2: ends within") != std::string::npos);
  write_file_atomic(dir / "d.bin", "");
  CHECK(error_of([&] {
          TokenSource::from_bin(dir / "d.bin", 2);
        }).find("d.bin:0: the file is empty") != std::string::npos);
  CHECK(error_of([&] { split_tokens(a, 1.0); }).find("val_fraction") !=
        std::string::npos);
}

TEST_CASE("signals: a flag for SIGINT and SIGTERM") {
  for (int s : {SIGINT, SIGTERM}) {
    StopSignals stop;
    CHECK(!stop.requested());
    raise(s);
    CHECK(stop.requested());
  }
}
