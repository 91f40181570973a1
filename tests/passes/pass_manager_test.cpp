#include "passes/pass_manager.h"

#include <cstdlib>

#include "ir/text.h"
#include "passes/html_report.h"
#include "support/error.h"
#include "support/file.h"
#include "tests/passes/testing.h"
#include "tests/test.h"

namespace moec {
namespace {

constexpr const char* kSmall = R"(
func @f(%x: f32[4]) {
  %a = mul(%x, %x) : f32[4]
  %b = mul(%x, %x) : f32[4]
  %c = add(%a, %b) : f32[4]
  return %c
}
)";

TEST_CASE("passes run by name, with statistics and dumps") {
  auto g = parse_graph(kSmall);
  PassContext ctx;
  std::vector<std::string> dumps;
  RunOptions run;
  run.dump = [&](int i, std::string_view pass, const Graph&) {
    dumps.push_back(std::to_string(i) + " " + std::string(pass));
  };
  auto stats = run_passes(*g, {"cse", "dce"}, ctx, run);
  REQUIRE(stats.size() == 2);
  CHECK(stats[0].changed);
  CHECK(stats[0].nodes_after == stats[0].nodes_before - 1);
  CHECK_FALSE(stats[1].changed);
  CHECK(dumps == std::vector<std::string>{"0 input", "1 cse", "2 dce"});
}

TEST_CASE("an unknown pass is a usage error with a suggestion") {
  auto g = parse_graph(kSmall);
  PassContext ctx;
  CHECK_THROWS_WITH_AS(run_passes(*g, {"canonicalise"}, ctx),
                       doctest::Contains("did you mean canonicalize"),
                       UsageError);
  CHECK_THROWS_WITH_AS(FusionSet::parse("attention,mo"),
                       doctest::Contains("cross_entropy"), UsageError);
}

TEST_CASE("a fusion set prints as it parses") {
  for (auto text : {"on", "off", "attention,moe"})
    CHECK(FusionSet::parse(text).to_string() == text);
}

TEST_CASE("debug level 1 logs times, level 2 changed graphs") {
  auto g = parse_graph(kSmall);
  std::string log;
  PassContext ctx;
  ctx.debug = 2;
  ctx.log = [&](std::string_view s) { log += std::string(s) + "\n"; };
  run_passes(*g, {"cse", "cse"}, ctx);
  CHECK(log.find("(unchanged)") != log.npos);
  CHECK(log.find("func @f") != log.npos);
  CHECK(log.find("func @f") == log.rfind("func @f"));
}

TEST_CASE("the pipeline can be cut, and its stages are seen in order") {
  PassContext ctx;
  std::vector<Stage> stages;
  RunOptions run;
  run.stage = [&](Stage s, const Graph&) { stages.push_back(s); };
  auto g = parse_graph(kSmall);
  auto all = run_pipeline(*g, ctx, run);
  REQUIRE(stages.size() == kNumStages);
  for (int i = 0; i < kNumStages; ++i) CHECK(stages[i] == Stage(i));

  g = parse_graph(kSmall);
  RunOptions cut;
  cut.from_pass = "grad";
  cut.to_pass = "fold";
  auto part = run_pipeline(*g, ctx, cut);
  REQUIRE(part.size() < all.size());
  CHECK(part.front().name == "grad");
  CHECK(part.back().name == "fold");
}

TEST_CASE("a graph that is not in a stage's form is an internal error") {
  auto g = parse_graph(R"(
func @f(%x: f32[4]) {
  %y = stop_gradient(%x) : f32[4]
  return %y
}
)");
  CHECK_NOTHROW(check_stage(*g, Stage::Matched, {}));
  CHECK_THROWS_AS(check_stage(*g, Stage::Grad, {}), InternalError);
}

// MOEC_UPDATE=1 writes the file anew.
// This backend runs no fusions, so the stage after fusion cannot be legal.
TEST_CASE("an internal error leaves a file and the command that repeats it") {
  auto g = parse_graph(kSmall);
  PassContext ctx;
  ctx.options.has_lowering = [](const Node& n) { return n.op() != Op::Fusion; };
  std::string why = error_of([&] { run_pipeline(*g, ctx); });
  CAPTURE(why);
  REQUIRE(why.find("moec dump ") != why.npos);
  auto at = why.find("moec dump ") + 10;
  std::filesystem::path file = why.substr(at, why.find(' ', at) - at);
  auto number = why.substr(why.find("--from-pass ") + 12);
  number = number.substr(0, number.find(' '));
  CHECK(why.find("--to-pass " + number) != why.npos);
  // The graph before that pass fails in the same way.
  auto again = parse_graph(read_file(file));
  RunOptions run;
  run.from_pass = run.to_pass = number;
  std::string second = error_of([&] { run_pipeline(*again, ctx, run); });
  CHECK(second.substr(0, second.find('\n')) == why.substr(0, why.find('\n')));
  for (auto& made : {why, second}) {
    auto from = made.find("moec dump ") + 10;
    std::filesystem::remove(made.substr(from, made.find(' ', from) - from));
  }
}

TEST_CASE("the pipeline is cut by number or name, and wrong cuts are errors") {
  PassContext ctx;
  auto ran = [&](const std::string& from, const std::string& to) {
    auto g = parse_graph(kSmall);
    RunOptions run;
    run.from_pass = from;
    run.to_pass = to;
    std::string names;
    run.dump = [&](int i, std::string_view pass, const Graph&) {
      names += fmt::format("{} {}, ", i, pass);
    };
    run_pipeline(*g, ctx, run);
    return names;
  };
  CHECK(ran("2", "dce").starts_with("1 input, 2 cse, 3 dce, "));
  CHECK(ran("2", "3") == "1 input, 2 cse, 3 dce, ");
  CHECK_THROWS_WITH_AS(ran("99", ""), doctest::Contains("passes 1 to "),
                       UsageError);
  CHECK_THROWS_AS(ran("schedule", "grad"), UsageError);
  CHECK_THROWS_WITH_AS(ran("remat", ""), doctest::Contains("not among"),
                       UsageError);
}

TEST_CASE("a page of all passes carries every text once") {
  HtmlReport report;
  PassContext ctx;
  auto g = parse_graph(kSmall);
  report.add(*g, ctx);
  auto page = report.page("</script> a title");
  CHECK(page.find("\"name\":\"f\"") != page.npos);
  for (auto& step : standard_pipeline({}))
    CHECK(page.find(fmt::format("\"pass\":\"{}\"", step.pass)) != page.npos);
  CHECK(page.find("%c = add(%a, %b) : f32[4]") != page.npos);
  CHECK(page.find("MOEC_DATA") == page.npos);
  CHECK(page.find("\\u003c/script>") != page.npos);
}

TEST_CASE("docs/passes.md is what passes.def says") {
  if (std::getenv("MOEC_UPDATE")) {
    AtomicFile file("docs/passes.md");
    file.write(passes_reference());
    file.commit();
  }
  CHECK(read_file("docs/passes.md") == passes_reference());
}

}  // namespace
}  // namespace moec
