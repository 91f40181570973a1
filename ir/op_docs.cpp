#include "ir/op_docs.h"

#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

// The first op of each family, in the order of opcodes.def.
struct Family {
  Op first;
  std::string_view title;
};
constexpr Family kFamilies[] = {
    {Op::Arg, "Structure"},
    {Op::Neg, "Elementwise"},
    {Op::Broadcast, "Shape"},
    {Op::Gather, "Indexing"},
    {Op::Sum, "Reductions"},
    {Op::Softmax, "Softmax and norms"},
    {Op::Matmul, "Matrix products"},
    {Op::Rope, "Attention"},
    {Op::TopK, "Expert routing"},
    {Op::CrossEntropy, "Losses"},
    {Op::RandomUniform, "Randomness"},
    {Op::GlobalNorm, "Optimizer"},
};

constexpr std::string_view kHead = R"(# Ops

Written by `ops_markdown()` from the definitions in `ir/ops/`; a test compares.
After a change: `MOEC_UPDATE_DOCS=1 build/release/test_ops`.

Elementwise ops broadcast their operands by numpy's rule: shapes are aligned at
the last axis, and an axis of size 1 is repeated. Operands have one dtype.
Reductions, softmax, norms and products accumulate in f32 or better whatever
the dtype. An operand in brackets may be left out; an attribute with a default
may be. An index that is negative reads zeros and writes nothing.

The *gradient* of an op is its own rule, or that of its meaning (its
decomposition into simpler ops), or none: then nothing flows through it.
)";

std::string_view kind_name(AttrKind k) {
  switch (k) {
    case AttrKind::Bool: return "bool";
    case AttrKind::Int: return "int";
    case AttrKind::Float: return "float";
    case AttrKind::String: return "string";
    case AttrKind::Ints: return "ints";
    case AttrKind::DType: return "dtype";
  }
  return "";
}

std::string signature(const OpDef& d) {
  std::string s(d.name);
  s += '(';
  auto add = [&](const std::string& operand) {
    if (s.back() != '(') s += ", ";
    s += operand;
  };
  for (size_t i = 0; i < d.operand_names.size(); ++i) {
    std::string name(d.operand_names[i]);
    add(int(i) < d.min_inputs ? name : "[" + name + "]");
  }
  if (d.max_inputs < 0) add("x...");
  return s + ')';
}

std::string properties(const OpDef& d) {
  std::string s = d.traits & kNotDifferentiable ? "Gradient: none."
                  : d.vjp                       ? "Gradient: its own rule."
                  : d.decompose                 ? "Gradient: of its meaning."
                                                : "";
  auto add = [&](std::string_view text) {
    if (!s.empty()) s += ' ';
    s += text;
  };
  if (d.traits & kElementwise) add("Elementwise.");
  if (d.traits & kCommutative) add("Commutative.");
  if (d.traits & kDataMovement) add("Moves data only.");
  if (d.traits & kFused) add("Fused: stands for its meaning.");
  return s;
}

std::string entry(const OpDef& d) {
  std::string s = fmt::format("\n### `{}`\n\n{}\n", signature(d), d.summary);
  if (!d.attrs.empty()) s += '\n';
  for (const AttrDef& a : d.attrs) {
    s += fmt::format("- `{}` ({}", a.name, kind_name(a.kind));
    if (!a.required) s += fmt::format(", default `{}`", to_string(a.value));
    s += fmt::format("): {}\n", a.doc);
  }
  std::string more = properties(d);
  if (!more.empty()) s += "\n" + more + "\n";
  return s;
}

}  // namespace

std::string ops_markdown() {
  std::string s(kHead);
  for (int i = 0; i < kNumOps; ++i) {
    for (const Family& f : kFamilies)
      if (f.first == Op(i)) s += fmt::format("\n## {}\n", f.title);
    s += entry(def(Op(i)));
  }
  return s;
}

}  // namespace moec
