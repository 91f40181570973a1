// kill -9 at random moments of a run, then --resume auto, ends with the bits
// of the uninterrupted run.
#include <chrono>

#include "support/file.h"
#include "support/rng.h"
#include "tests/driver/process.h"
#include "tests/test.h"

namespace moec {
namespace {

TEST_CASE("kill -9 at 20 random moments costs no bit") {
  if (!long_tests()) {
    skip_test("takes minutes; MOEC_TEST_LONG=1 runs it");
    return;
  }
  TempDir dir;
  auto args = [&](const std::string& out) {
    return std::vector<std::string>{"train",
                                    "--steps",
                                    "300",
                                    "--out",
                                    (dir / out).string(),
                                    "--resume",
                                    "auto",
                                    "--set",
                                    "train.save_every=3",
                                    "--set",
                                    "train.keep=4",
                                    "--set",
                                    "train.eval_every=20",
                                    "--set",
                                    "train.batch=4"};
  };
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  REQUIRE(run_moec(args("whole")).code == 0);
  double whole = std::chrono::duration<double>(Clock::now() - start).count();
  int killed = 0;
  for (int i = 0; i < 20; ++i) {
    // Twenty such pieces rarely add up to the whole run.
    double after = 0.1 + whole / 12 * uniform_from_word(random_word(1, 2, i));
    killed += run_moec(args("part"), after).code == 128 + 9;
  }
  MESSAGE(killed << " of 20 runs were killed");
  CHECK(killed >= 15);
  auto last = run_moec(args("part"));
  CAPTURE(last.err);
  REQUIRE(last.code == 0);
  for (auto name : {"model.safetensors", "optimizer.safetensors",
                    "manifest.json", "config.toml", "tokenizer.json"})
    CHECK(read_file(dir / "whole/step-300" / name) ==
          read_file(dir / "part/step-300" / name));
}

}  // namespace
}  // namespace moec
