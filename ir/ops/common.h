// What the op definitions share: operand checks with precise messages, axes,
// and views of row-major data. Only files of ir/ops include this.
#pragma once
#include "ir/builder.h"
#include "ir/interpreter.h"
#include "ir/op_def.h"
#include "support/error.h"

namespace moec::ops {

#define MOEC_OP(E, text) extern const OpDef k##E;
#include "ir/opcodes.def"
#undef MOEC_OP

// ---- checks; every message starts with the op's name -----------------------

inline std::string_view op_of(const InferArgs& a) {
  return op_name(a.node.op());
}
// "operand x f32[2,3]", by the name in the op's definition.
std::string describe(const InferArgs&, int operand);

void expect_float(const InferArgs&, int operand);
void expect_int(const InferArgs&, int operand);  // i32, i64 or u32
void expect_dtype(const InferArgs&, int operand, DType);
// The operand's dtype is that of operand `as`.
void expect_dtype_of(const InferArgs&, int operand, int as);
void expect_rank(const InferArgs&, int operand, i64 rank);
void expect_min_rank(const InferArgs&, int operand, i64 rank);
void expect_dims(const InferArgs&, int operand, const Dims& dims);
// dtype and dims are those of operand `as`.
void expect_same(const InferArgs&, int operand, int as);
void expect_key(const InferArgs&, int operand);  // u32[2]

// The attribute `name` as an axis of operand 0, counted from the start.
i64 axis_attr(const InferArgs&, std::string_view name = "axis");
i64 axis_of(const Node&, std::string_view name = "axis");
Dims dims_attr(const InferArgs&, std::string_view name = "shape");

// ---- types -----------------------------------------------------------------

// Statistics (lse, losses) are f32, or f64 in an f64 graph.
inline DType stat_dtype(DType t) {
  return t == DType::F64 ? DType::F64 : DType::F32;
}
inline bool is_int(DType t) {
  return t == DType::I32 || t == DType::I64 || t == DType::U32;
}
inline Dims without_axis(Dims d, i64 axis) {
  d.erase(d.begin() + axis);
  return d;
}
inline Dims leading(const Type& t, i64 dropped) {
  return {t.dims.begin(), t.dims.end() - dropped};
}
inline std::vector<i64> to_ints(const Dims& d) { return {d.begin(), d.end()}; }
inline i64 product(const i64* begin, const i64* end) {
  i64 n = 1;
  for (; begin != end; ++begin) n *= *begin;
  return n;
}

// ---- gradients -------------------------------------------------------------

// Whether a gradient of `v` can be of use to anyone.
inline bool wants_grad(Value v) {
  return is_float(v.type().dtype) && v.node->op() != Op::Constant;
}
// a + b, where none is zero.
inline Value add_some(Builder& b, Value x, Value y) {
  return !x ? y : !y ? x : b.add(x, y);
}

// ---- evaluation ------------------------------------------------------------

// Row-major data seen as [outer, n, inner] around one axis.
struct AxisView {
  i64 outer, n, inner;
  AxisView(const Type& t, i64 axis)
      : outer(product(t.dims.data(), t.dims.data() + axis)),
        n(t.dims[axis]),
        inner(
            product(t.dims.data() + axis + 1, t.dims.data() + t.dims.size())) {}
};

// Calls f(output offset, input offset, run) for the rows of a row-major output
// of shape `dims`: `run` elements that are consecutive in the output, while
// the input advances by `strides`. f must step the input by strides.back().
template <class F>
void for_each_row(const Dims& dims, const Dims& strides, F f) {
  i64 rank = i64(dims.size());
  if (rank == 0) return f(i64(0), i64(0), i64(1));
  i64 run = dims[rank - 1], total = 1;
  for (i64 d : dims) total *= d;
  if (total == 0) return;
  Dims at(size_t(rank), 0);
  i64 in = 0;
  for (i64 out = 0; out < total; out += run) {
    f(out, in, run);
    for (i64 d = rank - 2; d >= 0; --d) {
      in += strides[d];
      if (++at[d] < dims[d]) break;
      in -= strides[d] * dims[d];
      at[d] = 0;
    }
  }
}

// Strides with which `t` is read when broadcast to `out` (numpy's rule).
Dims broadcast_strides(const Type& t, const Dims& out);

// Offsets of groups ascend from 0 or more to at most `rows`.
void check_offsets(const EvalArgs&, int operand, i64 rows);

inline uint64_t key_of(const Tensor& t) {
  return uint64_t(t.data[0]) | uint64_t(t.data[1]) << 32;
}

// ---- cost ------------------------------------------------------------------

// `flops`, with each operand and result moved once.
Cost io_cost(const Node&, double flops);

}  // namespace moec::ops
