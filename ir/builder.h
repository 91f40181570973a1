// Makes nodes at one place in a graph: what vjps, decompositions, passes and
// the DSL use.
#pragma once
#include <initializer_list>

#include "ir/graph.h"

namespace moec {

class Builder {
 public:
  // New nodes go before `before` (nullptr: at the end, before the return) and
  // take provenance from it unless set.
  explicit Builder(Graph& g, Node* before = nullptr)
      : graph_(&g), before_(before) {
    if (before) where = before->where;
  }

  Graph& graph() const { return *graph_; }
  Node* before() const { return before_; }
  Provenance where;

  Node* node(Op op, absl::Span<const Value> operands, const AttrList& a = {}) {
    return graph_->create(op, operands, a, before_, where);
  }
  Value op(Op o, std::initializer_list<Value> operands,
           const AttrList& a = {}) {
    return node(o, absl::MakeConstSpan(operands.begin(), operands.size()), a)
        ->result();
  }

  // A splat of type `t`.
  Value constant(const Type& t, double value);
  Value scalar(double value, DType t = DType::F32) {
    return constant(Type{t, {}}, value);
  }
  Value zeros_like(Value v) { return constant(v.type(), 0); }

  Value neg(Value a) { return op(Op::Neg, {a}); }
  Value exp(Value a) { return op(Op::Exp, {a}); }
  Value log(Value a) { return op(Op::Log, {a}); }
  Value add(Value a, Value b) { return op(Op::Add, {a, b}); }
  Value sub(Value a, Value b) { return op(Op::Sub, {a, b}); }
  Value mul(Value a, Value b) { return op(Op::Mul, {a, b}); }
  Value div(Value a, Value b) { return op(Op::Div, {a, b}); }
  // With a scalar of the value's own dtype.
  Value add(Value a, double s) { return add(a, scalar(s, a.type().dtype)); }
  Value mul(Value a, double s) { return mul(a, scalar(s, a.type().dtype)); }
  Value select(Value p, Value a, Value b) { return op(Op::Select, {p, a, b}); }
  // direction: "lt" "le" "gt" "ge" "eq" "ne".
  Value compare(Value a, Value b, std::string direction) {
    return op(Op::Compare, {a, b}, {{"direction", std::move(direction)}});
  }
  Value cast(Value a, DType t);  // `a` itself if it has that dtype

  // No-ops return `a` itself.
  Value reshape(Value a, const Dims& shape);
  Value broadcast(Value a, const Dims& shape);
  Value transpose(Value a, std::vector<i64> perm);
  Value transpose_last(Value a);  // swaps the last two axes
  Value slice(Value a, std::vector<i64> start, std::vector<i64> limit);
  Value concat(absl::Span<const Value> parts, i64 axis);

  Value sum(Value a, std::vector<i64> axes, bool keepdims = false);
  Value mean(Value a, std::vector<i64> axes, bool keepdims = false);
  Value reduce_max(Value a, std::vector<i64> axes, bool keepdims = false);
  // Sums `a` down to `shape`, the inverse of broadcasting `shape` to a's.
  Value sum_to(Value a, const Dims& shape);

  Value matmul(Value a, Value b, bool transpose_a = false,
               bool transpose_b = false, double scale = 1);
  Value softmax(Value a, i64 axis = -1) {
    return op(Op::Softmax, {a}, {{"axis", axis}});
  }

 private:
  Graph* graph_;
  Node* before_;
};

// The shape two shapes broadcast to (numpy's rule); throws UserError naming
// both.
Dims broadcast_dims(std::string_view op, const Type& a, const Type& b);

// Copies the nodes of `from` (without arguments and return) to the builder's
// place, with its arguments replaced by `args`; returns what its outputs
// became.
Values inline_graph(Builder&, const Graph& from, absl::Span<const Value> args);

}  // namespace moec
