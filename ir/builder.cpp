#include "ir/builder.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>

#include "support/error.h"

namespace moec {
namespace {

std::vector<i64> ints(const Dims& d) { return {d.begin(), d.end()}; }

}  // namespace

Value Builder::constant(const Type& t, double value) {
  return op(Op::Constant, {},
            {{"dtype", t.dtype}, {"shape", ints(t.dims)}, {"value", value}});
}

Value Builder::cast(Value a, DType t) {
  if (a.type().dtype == t) return a;
  return op(Op::Cast, {a}, {{"dtype", t}});
}

Value Builder::reshape(Value a, const Dims& shape) {
  if (a.type().dims == shape) return a;
  return op(Op::Reshape, {a}, {{"shape", ints(shape)}});
}

Value Builder::broadcast(Value a, const Dims& shape) {
  if (a.type().dims == shape) return a;
  return op(Op::Broadcast, {a}, {{"shape", ints(shape)}});
}

Value Builder::transpose(Value a, std::vector<i64> perm) {
  if (std::is_sorted(perm.begin(), perm.end())) return a;
  return op(Op::Transpose, {a}, {{"perm", std::move(perm)}});
}

Value Builder::transpose_last(Value a) {
  std::vector<i64> perm(a.type().dims.size());
  for (size_t i = 0; i < perm.size(); ++i) perm[i] = i64(i);
  MOEC_CHECK(perm.size() >= 2);
  std::swap(perm[perm.size() - 1], perm[perm.size() - 2]);
  return transpose(a, std::move(perm));
}

Value Builder::slice(Value a, std::vector<i64> start, std::vector<i64> limit) {
  bool whole =
      limit == ints(a.type().dims) &&
      std::all_of(start.begin(), start.end(), [](i64 s) { return s == 0; });
  if (whole) return a;
  return op(Op::Slice, {a},
            {{"start", std::move(start)}, {"limit", std::move(limit)}});
}

Value Builder::concat(absl::Span<const Value> parts, i64 axis) {
  if (parts.size() == 1) return parts[0];
  return node(Op::Concat, parts, {{"axis", axis}})->result();
}

Value Builder::sum(Value a, std::vector<i64> axes, bool keepdims) {
  return op(Op::Sum, {a}, {{"axes", std::move(axes)}, {"keepdims", keepdims}});
}

Value Builder::mean(Value a, std::vector<i64> axes, bool keepdims) {
  return op(Op::Mean, {a}, {{"axes", std::move(axes)}, {"keepdims", keepdims}});
}

Value Builder::reduce_max(Value a, std::vector<i64> axes, bool keepdims) {
  return op(Op::ReduceMax, {a},
            {{"axes", std::move(axes)}, {"keepdims", keepdims}});
}

Value Builder::sum_to(Value a, const Dims& shape) {
  const Dims& from = a.type().dims;
  if (from == shape) return a;
  i64 extra = i64(from.size()) - i64(shape.size());
  MOEC_CHECK(extra >= 0);
  std::vector<i64> axes;
  for (i64 i = 0; i < i64(from.size()); ++i)
    if (i < extra || (shape[i - extra] == 1 && from[i] != 1)) axes.push_back(i);
  Value s = axes.empty() ? a : sum(a, axes, /*keepdims=*/true);
  return reshape(s, shape);
}

Value Builder::matmul(Value a, Value b, bool transpose_a, bool transpose_b,
                      double scale) {
  return op(Op::Matmul, {a, b},
            {{"transpose_a", transpose_a},
             {"transpose_b", transpose_b},
             {"scale", scale}});
}

Dims broadcast_dims(std::string_view op, const Type& a, const Type& b) {
  Dims out(std::max(a.dims.size(), b.dims.size()));
  auto at = [&](const Type& t, size_t i) -> i64 {
    size_t missing = out.size() - t.dims.size();
    return i < missing ? 1 : t.dims[i - missing];
  };
  for (size_t i = 0; i < out.size(); ++i) {
    i64 x = at(a, i), y = at(b, i);
    if (x != y && x != 1 && y != 1)
      user_error(
          "{}: shapes do not broadcast: {} and {} (axis {} has {} "
          "and {})",
          op, to_string(a), to_string(b), i, x, y);
    out[i] = x == 1 ? y : x;
  }
  return out;
}

Values inline_graph(Builder& b, const Graph& from,
                    absl::Span<const Value> args) {
  MOEC_CHECK(args.size() == from.args().size());
  absl::flat_hash_map<Value, Value> map;
  for (size_t i = 0; i < args.size(); ++i)
    map[from.args()[i]->result()] = args[i];
  Values results;
  for (Node* n : from) {
    if (n->op() == Op::Arg) continue;
    std::vector<Value> operands;
    for (Value v : n->operands()) operands.push_back(map.at(v));
    if (n->op() == Op::Return) {
      results.assign(operands.begin(), operands.end());
      break;
    }
    Node* c = b.graph().create(n->op(), operands, n->attr_list(), b.before(),
                               n->where.scope.empty() ? b.where : n->where,
                               n->body() ? n->body()->clone() : nullptr);
    for (int i = 0; i < n->num_results(); ++i) map[n->result(i)] = c->result(i);
  }
  return results;
}

}  // namespace moec
