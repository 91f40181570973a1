// Elementwise ops on registers: the formulas of codegen/scalar_ops.def and
// those that depend on attributes or types.
#pragma once
#include <string_view>
#include <vector>

#include "codegen/cpu/emit.h"
#include "ir/graph.h"

namespace moec {

// `attr` is the direction of a compare; of exp, "nonpositive" says so of the
// operand and "minus_one" asks for exp(x) - 1. `from` is the operands' dtype
// (of the second one for select), `to` the result's.
V emit_scalar(Emit&, Op, std::string_view attr, DType from, DType to,
              const std::vector<V>& in);
// A scalar constant in the register type of `t`.
V emit_constant(Emit&, DType t, double);
// In vector additions; about 1/16 ns per f32 element on 512-bit registers.
double scalar_cost(Op);
bool is_scalar_op(Op);

}  // namespace moec
