// An op is defined once: everything that the IR knows of it stands in one
// OpDef (ir/ops/<family>.cpp). Backends keep their lowerings in tables of
// their own; an op without one is legalised through `decompose`.
#pragma once
#include <optional>
#include <vector>

#include "ir/graph.h"

namespace moec {

class Builder;
struct Tensor;

enum Trait : uint32_t {
  kElementwise = 1,  // one scalar formula per element; operands broadcast
  kCommutative = 2,
  kFused = 4,               // has the meaning of its decomposition
  kImpure = 8,              // never merged or removed (arg, return)
  kNotDifferentiable = 16,  // the gradient is defined as none
  kDataMovement = 32,       // moves elements, computes nothing
};

using Types = absl::InlinedVector<Type, 1>;

struct InferArgs {
  absl::Span<const Type> in;
  const Node& node;  // for attributes and body; its types are not yet set
};

struct EvalArgs {
  const Node& node;
  absl::Span<const Tensor* const> in;
  absl::Span<Tensor> out;  // types set, data sized and zero
};

struct Cost {
  double flops = 0, bytes = 0;
};

struct OpDef {
  std::string_view name, summary;
  int min_inputs = 0, max_inputs = 0;  // max -1: any number
  uint32_t traits = 0;
  absl::Span<const AttrDef> attrs = {};
  std::vector<std::string_view> operand_names = {};
  // Result types from operand types and attributes; throws UserError. The
  // verifier infers again and compares.
  Types (*infer)(const InferArgs&) = nullptr;
  // Gradient of each operand (a none Value: no gradient) from those of the
  // results (a none Value: zero). nullptr: through `decompose`, unless the op
  // is kNotDifferentiable.
  Values (*vjp)(Builder&, Node&, absl::Span<const Value> dy) = nullptr;
  // The results in simpler ops: the meaning of a fused op, its fallback and
  // the oracle of its tests.
  Values (*decompose)(Builder&, Node&) = nullptr;
  // Reference loop in double; nullptr: evaluates the decomposition.
  void (*eval)(const EvalArgs&) = nullptr;
  // nullptr: one FLOP per result element and each operand and result once.
  Cost (*cost)(const Node&) = nullptr;
};

const OpDef& def(Op);
std::string_view op_name(Op);
std::optional<Op> parse_op(std::string_view text_name);
Cost cost_of(const Node&);
bool has_trait(const Node&, Trait);

}  // namespace moec
