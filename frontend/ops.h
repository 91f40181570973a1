// Functions of the DSL, one per op and named like it (docs/ops.md has shapes,
// attributes and meanings). Binary ones broadcast by numpy's rule and take
// numbers. A wrong shape is a UserError that names op, shapes, scope and line.
#pragma once
#include <utility>

#include "frontend/tensor.h"

namespace moec::dsl {

Tensor operator+(Operand a, Operand b);
Tensor operator-(Operand a, Operand b);
Tensor operator*(Operand a, Operand b);
Tensor operator/(Operand a, Operand b);
Tensor operator-(Operand a);
Tensor maximum(Operand a, Operand b);
Tensor minimum(Operand a, Operand b);
Tensor pow(Operand a, Operand b);
// direction: "lt" "le" "gt" "ge" "eq" "ne"; the result is bool.
Tensor compare(Operand a, Operand b, std::string direction);
Tensor select(Operand pred, Operand a, Operand b);

Tensor abs(Operand x);
Tensor exp(Operand x);
Tensor log(Operand x);
Tensor sqrt(Operand x);
Tensor rsqrt(Operand x);
Tensor tanh(Operand x);
Tensor sigmoid(Operand x);
Tensor relu(Operand x);
Tensor silu(Operand x);
Tensor gelu(Operand x);  // the tanh form
Tensor softplus(Operand x);
Tensor square(Operand x);
Tensor cast(Operand x, DType dtype);
Tensor stop_gradient(Operand x);
Tensor logical_and(Operand a, Operand b);
// Index along an axis; shape, axis.
Tensor iota(DType dtype, const Dims& shape, i64 axis);

Tensor reshape(Operand x, const Dims& shape);
Tensor broadcast(Operand x, const Dims& shape);
Tensor transpose(Operand x, std::vector<i64> perm);
// Rows [start, limit) of one axis.
Tensor slice(Operand x, i64 axis, i64 start, i64 limit);
// Adds `high` zeros at the end of an axis.
Tensor pad_end(Operand x, i64 axis, i64 high);
Tensor concat(const std::vector<Operand>& parts, i64 axis);
// `size` entries of an axis from a start (i32[]) known at run time; an update
// may have a start for each row, i32[B].
Tensor dynamic_slice(Operand x, Operand start, i64 axis, i64 size);
Tensor dynamic_update_slice(Operand x, Operand update, Operand start, i64 axis);

Tensor sum(Operand x, std::vector<i64> axes, bool keepdims = false);
Tensor mean(Operand x, std::vector<i64> axes, bool keepdims = false);
Tensor sum(Operand x);   // over all axes
Tensor mean(Operand x);  // over all axes
Tensor softmax(Operand x, i64 axis = -1);
Tensor logsumexp(Operand x, i64 axis = -1);
Tensor argmax(Operand x, i64 axis = -1);

struct MatmulOptions {
  bool transpose_a = false, transpose_b = false;
  double scale = 1;
};
Tensor matmul(Operand a, Operand b, MatmulOptions options = {});
Tensor rms_norm(Operand x, Operand gamma, double eps);
Tensor layer_norm(Operand x, Operand gamma, Operand beta, double eps);
// Positions along `axis`, or given as [T] or [B,T].
Tensor rope(Operand x, double theta, i64 axis = -2);
Tensor rope(Operand x, Operand positions, double theta, i64 axis = -2);
Tensor causal_mask(Operand scores, i64 window = 0);
// With the key at which each row's first query stands, i32[B].
Tensor causal_mask(Operand scores, Operand start, i64 window);

Tensor embedding(Operand table, Operand ids);
Tensor gather(Operand table, Operand ids);
Tensor take_along(Operand x, Operand indices);
Tensor put_along(Operand indices, Operand values, i64 size);
Tensor one_hot(Operand ids, i64 size);
Tensor bincount(Operand ids, i64 size);
std::pair<Tensor, Tensor> top_k(Operand x, i64 k);  // values, indices
struct CapacityOptions {
  i64 experts, capacity, rows;
  bool per_row = true;
};
Tensor capacity_keep(Operand indices, CapacityOptions options);

// Loss of each row (f32[N]); a target of -1 is ignored and gives 0.
Tensor cross_entropy(Operand logits, Operand targets);

Tensor random_normal(Operand key, const Dims& shape, i64 stream);
Tensor random_uniform(Operand key, const Dims& shape, i64 stream);
Tensor dropout(Operand x, Operand key, double p, i64 stream);
Tensor global_norm(const std::vector<Tensor>& xs);

}  // namespace moec::dsl
