#include "passes/pipeline.h"

#include <absl/types/span.h>
#include <fmt/format.h>

#include <array>

#include "support/error.h"

namespace moec {
namespace {

constexpr std::array<std::string_view, kNumFusions> kFusionNames{
    "attention",   "cross_entropy", "moe",
    "elementwise", "reduction",     "epilogue"};
constexpr std::array<std::string_view, 3> kMoeForms{"dense", "grouped",
                                                    "fused"};
constexpr std::array<std::string_view, kNumStages> kStages{
    "input", "matched", "grad", "partitioned", "fused", "scheduled"};

std::string joined(absl::Span<const std::string_view> names) {
  std::string s;
  for (auto n : names) s += fmt::format("{}{}", s.empty() ? "" : ", ", n);
  return s;
}

}  // namespace

std::string_view fusion_name(Fusion f) { return kFusionNames[int(f)]; }

FusionSet FusionSet::parse(std::string_view text) {
  if (text == "on") return all();
  if (text == "off") return none();
  FusionSet set = none();
  while (!text.empty()) {
    auto comma = text.find(',');
    auto name = text.substr(0, comma);
    bool found = false;
    for (int i = 0; i < kNumFusions; ++i)
      if (kFusionNames[i] == name) {
        set = set.with(Fusion(i));
        found = true;
      }
    if (!found)
      usage_error("fuse: `{}` is no fusion; give on, off or a list of {}", name,
                  joined(kFusionNames));
    text.remove_prefix(comma == text.npos ? text.size() : comma + 1);
  }
  return set;
}

std::string FusionSet::to_string() const {
  if (*this == all()) return "on";
  if (*this == none()) return "off";
  std::string s;
  for (int i = 0; i < kNumFusions; ++i)
    if (has(Fusion(i)))
      s += fmt::format("{}{}", s.empty() ? "" : ",", kFusionNames[i]);
  return s;
}

MoeForm parse_moe_form(std::string_view text) {
  for (size_t i = 0; i < kMoeForms.size(); ++i)
    if (kMoeForms[i] == text) return MoeForm(i);
  usage_error("moe: `{}` is no form of expert layers; give one of {}", text,
              joined(kMoeForms));
}

std::string_view moe_form_name(MoeForm f) { return kMoeForms[int(f)]; }
std::string_view stage_name(Stage s) { return kStages[int(s)]; }

std::vector<PipelineStep> standard_pipeline(const PipelineOptions& o) {
  std::vector<PipelineStep> steps;
  auto pass = [&](std::string_view name) { steps.push_back({name}); };
  auto end_of = [&](Stage s) { steps.back().ends.push_back(s); };
  // One form per pattern, so that each fusion is one pattern.
  pass("canonicalize");
  pass("cse");
  pass("dce");
  // Before grad: a fused op's own rule gives the fused backward.
  if (o.fuse.has(Fusion::Attention)) {
    pass("fuse-attention");
    pass("attention-layout");
  }
  if (o.fuse.has(Fusion::CrossEntropy)) pass("fuse-cross-entropy");
  if (o.moe != MoeForm::Dense) pass("fuse-moe");
  if (o.moe == MoeForm::Fused && o.fuse.has(Fusion::Moe)) pass("fuse-experts");
  pass("canonicalize");
  end_of(Stage::Matched);
  pass("grad");
  end_of(Stage::Grad);
  if (o.fuse.has(Fusion::CrossEntropy)) pass("fuse-loss-grad");
  // What the backend lacks is decomposed before the clean-up, which then sees
  // the parts.
  pass("legalize");
  pass("fold");
  pass("canonicalize");
  pass("cse");
  pass("dce");
  pass("split-norm");
  pass("narrow-weights");
  pass("dce");
  if (o.compute_dtype != DType::F32) {
    pass("mixed-precision");
    pass("canonicalize");
    pass("cse");
    pass("dce");
  }
  // After the last cse, which would undo it; the peak is that of the
  // scheduled graph.
  if (o.remat) {
    pass("schedule");
    pass("remat");
    pass("dce");
  }
  end_of(Stage::Partitioned);
  // Before the groups of the rest, which would take the same ops.
  if (o.fuse.has(Fusion::Epilogue)) pass("fuse-epilogue");
  if (o.fuse.has(Fusion::Elementwise) || o.fuse.has(Fusion::Reduction))
    pass("fuse-elementwise");
  end_of(Stage::Fused);
  pass("schedule");
  end_of(Stage::Scheduled);
  return steps;
}

}  // namespace moec
