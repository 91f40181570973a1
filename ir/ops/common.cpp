#include "ir/ops/common.h"

namespace moec::ops {
namespace {

[[noreturn]] void reject(const InferArgs& a, int operand,
                         const std::string& wish) {
  user_error("{}: {} should {}", op_of(a), describe(a, operand), wish);
}

i64 normal_axis(std::string_view op, const Type& t, i64 axis,
                std::string_view name) {
  i64 rank = t.rank();
  if (axis < -rank || axis >= rank)
    user_error("{}: {}={} is not an axis of {} (rank {})", op, name, axis,
               to_string(t), rank);
  return axis < 0 ? axis + rank : axis;
}

}  // namespace

std::string describe(const InferArgs& a, int operand) {
  const auto& names = a.node.def().operand_names;
  std::string name = operand < int(names.size())
                         ? std::string(names[operand])
                         : fmt::format("operand {}", operand);
  return name + " " + to_string(a.in[operand]);
}

void expect_float(const InferArgs& a, int i) {
  if (!is_float(a.in[i].dtype)) reject(a, i, "be floating point; cast it");
}

void expect_int(const InferArgs& a, int i) {
  if (!is_int(a.in[i].dtype)) reject(a, i, "hold integers; cast it to i32");
}

void expect_dtype(const InferArgs& a, int i, DType t) {
  if (a.in[i].dtype != t)
    reject(a, i, fmt::format("be {}; cast it", dtype_name(t)));
}

void expect_dtype_of(const InferArgs& a, int i, int as) {
  if (a.in[i].dtype != a.in[as].dtype)
    reject(
        a, i,
        fmt::format("have the dtype of {}; cast one of them", describe(a, as)));
}

void expect_rank(const InferArgs& a, int i, i64 rank) {
  if (a.in[i].rank() != rank) reject(a, i, fmt::format("have rank {}", rank));
}

void expect_min_rank(const InferArgs& a, int i, i64 rank) {
  if (a.in[i].rank() < rank)
    reject(a, i, fmt::format("have rank {} or more", rank));
}

void expect_dims(const InferArgs& a, int i, const Dims& dims) {
  if (a.in[i].dims != dims)
    reject(a, i, fmt::format("be {}", to_string(Type{a.in[i].dtype, dims})));
}

void expect_same(const InferArgs& a, int i, int as) {
  if (a.in[i] != a.in[as])
    reject(a, i, fmt::format("have the type of {}", describe(a, as)));
}

void expect_key(const InferArgs& a, int i) {
  if (a.in[i] != Type{DType::U32, {2}}) reject(a, i, "be a key, u32[2]");
}

i64 axis_attr(const InferArgs& a, std::string_view name) {
  return normal_axis(op_of(a), a.in[0], a.node.i(name), name);
}

i64 axis_of(const Node& n, std::string_view name) {
  return normal_axis(op_name(n.op()), n.operand(0).type(), n.i(name), name);
}

Dims dims_attr(const InferArgs& a, std::string_view name) {
  constexpr i64 kMaxElements = i64(1) << 44;
  const auto& v = a.node.ints(name);
  i64 n = 1;
  for (i64 d : v) {
    if (d < 0)
      user_error("{}: {} has a negative dimension {}", op_of(a), name, d);
    if (d > 0 && n > kMaxElements / d)
      user_error("{}: {}={} is too large", op_of(a), name,
                 to_string(AttrValue(v)));
    n *= d;
  }
  return {v.begin(), v.end()};
}

void check_offsets(const EvalArgs& a, int operand, i64 rows) {
  double last = 0;
  for (double x : a.in[operand]->data) {
    if (x < last || x > double(rows))
      user_error(
          "{}: offsets should ascend from 0 to at most {} rows, but {} "
          "follows {}",
          op_name(a.node.op()), rows, x, last);
    last = x;
  }
}

Dims broadcast_strides(const Type& t, const Dims& out) {
  Dims own = row_major_strides(t.dims);
  Dims s(out.size(), 0);
  size_t missing = out.size() - t.dims.size();
  for (size_t i = 0; i < t.dims.size(); ++i)
    if (t.dims[i] != 1) s[missing + i] = own[i];
  return s;
}

Cost io_cost(const Node& n, double flops) {
  Cost c{flops, 0};
  for (const Type& t : n.types()) c.bytes += double(t.bytes());
  for (Value v : n.operands()) c.bytes += double(v.type().bytes());
  return c;
}

}  // namespace moec::ops
