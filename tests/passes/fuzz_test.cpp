// Random graphs through every pass: the meaning stays, the text parses back,
// the memory plan never overwrites what is still read.
#include "tests/passes/fuzz.h"

#include <cstdio>
#include <cstdlib>

#include "ir/text.h"
#include "passes/memory_plan.h"
#include "tests/passes/testing.h"
#include "tests/test.h"

namespace moec {
namespace {

// MOEC_FUZZ=FIRST:END chooses the seeds.
std::pair<int, int> seeds() {
  int first = 0, end = long_tests() ? 3000 : 120;
  if (const char* range = std::getenv("MOEC_FUZZ"))
    REQUIRE(std::sscanf(range, "%d:%d", &first, &end) == 2);
  return {first, end};
}

TEST_CASE("random graphs mean the same after the pipeline, in any form") {
  auto [first, end] = seeds();
  for (int seed = first; seed < end; ++seed) {
    INFO("seed ", seed);
    auto source = random_graph(uint64_t(seed), 6 + seed % 30, true);
    auto inputs = random_inputs(*source, uint64_t(seed));
    PassContext ctx;
    auto plain = source->clone();
    run_passes(*plain, {"grad"}, ctx);
    auto want = interpret(*plain, inputs, Precision::F64);
    for (auto fuse : {"on", "off", "elementwise", "epilogue"}) {
      auto g = source->clone();
      PassContext options;
      options.options.fuse = FusionSet::parse(fuse);
      options.options.remat = seed % 2 == 0;
      run_pipeline(*g, options);
      double difference =
          max_difference(want, interpret(*g, inputs, Precision::F64));
      // Folded constants are rounded to f32.
      if (!(difference < 1e-6)) {
        FAIL_CHECK("fuse=", fuse, " changes it by ", difference, ":\n",
                   print(*source), "\n", print(*g));
        return;
      }
      CHECK(print(*parse_graph(print(*g))) == print(*g));
      MemoryPlan plan = plan_memory(*g);
      CHECK(plan.arena_bytes >= plan.live_bytes);
    }
  }
}

}  // namespace
}  // namespace moec
