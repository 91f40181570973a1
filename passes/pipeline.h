// What a compilation may do to a graph, and the standard order of passes.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "support/dtype.h"

namespace moec {

class Node;

// The fusions that can be switched one by one, `--fuse=attention,moe,...`.
enum class Fusion : uint8_t {
  Attention,
  CrossEntropy,
  Moe,
  Elementwise,
  Reduction,
  Epilogue,
};
inline constexpr int kNumFusions = 6;
std::string_view fusion_name(Fusion);

class FusionSet {
 public:
  static FusionSet all() { return FusionSet((1u << kNumFusions) - 1); }
  static FusionSet none() { return FusionSet(0); }
  // "on", "off" or a comma-separated list of names; a UsageError otherwise.
  static FusionSet parse(std::string_view text);

  bool has(Fusion f) const { return bits_ >> int(f) & 1; }
  FusionSet with(Fusion f) const { return FusionSet(bits_ | 1u << int(f)); }
  FusionSet without(Fusion f) const {
    return FusionSet(bits_ & ~(1u << int(f)));
  }
  bool operator==(const FusionSet&) const = default;
  std::string to_string() const;

 private:
  explicit FusionSet(uint32_t bits) : bits_(bits) {}
  uint32_t bits_;
};

// How expert layers run: all experts on all tokens; tokens sorted by expert
// through grouped matmuls; or the same in fused kernels.
enum class MoeForm : uint8_t { Dense, Grouped, Fused };
MoeForm parse_moe_form(std::string_view text);  // UsageError
std::string_view moe_form_name(MoeForm);

struct PipelineOptions {
  FusionSet fuse = FusionSet::all();
  MoeForm moe = MoeForm::Fused;
  DType compute_dtype = DType::F32;  // BF16: matrix products in bf16
  bool remat = false;                // recompute cheap values in the backward
  // Whether the backend runs this node as it is; legalize decomposes the
  // others. Empty: every node.
  std::function<bool(const Node&)> has_lowering;
};

// The stages that `moec dump --stage` names: each ends after one pass of the
// standard pipeline and has a legal form, checked there.
enum class Stage : uint8_t {
  Input,
  Matched,      // fused ops stand for what was matched
  Grad,         // no grad op and no stop_gradient
  Partitioned,  // every value is one device's
  Fused,        // every node is one launch group
  Scheduled,    // in execution order
};
inline constexpr int kNumStages = 6;
std::string_view stage_name(Stage);

struct PipelineStep {
  std::string_view pass;
  std::vector<Stage> ends = {};  // the stages that are reached after it
};

// The steps that these options ask for, in order.
std::vector<PipelineStep> standard_pipeline(const PipelineOptions&);

}  // namespace moec
