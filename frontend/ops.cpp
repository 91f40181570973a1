#include "frontend/ops.h"

#include "frontend/trace.h"

namespace moec::dsl {
namespace {

Tensor op(Op o, std::vector<Operand> operands, const AttrList& attrs = {}) {
  return Tensor(record(o, std::move(operands), attrs)->result());
}

std::vector<i64> to_vector(const Dims& d) { return {d.begin(), d.end()}; }

std::vector<i64> all_axes(const Operand& x) {
  std::vector<i64> axes;
  for (i64 i = 0; i < x.tensor.rank(); ++i) axes.push_back(i);
  return axes;
}

}  // namespace

Tensor operator+(Operand a, Operand b) { return op(Op::Add, {a, b}); }
Tensor operator-(Operand a, Operand b) { return op(Op::Sub, {a, b}); }
Tensor operator*(Operand a, Operand b) { return op(Op::Mul, {a, b}); }
Tensor operator/(Operand a, Operand b) { return op(Op::Div, {a, b}); }
Tensor operator-(Operand a) { return op(Op::Neg, {a}); }
Tensor maximum(Operand a, Operand b) { return op(Op::Maximum, {a, b}); }
Tensor minimum(Operand a, Operand b) { return op(Op::Minimum, {a, b}); }
Tensor pow(Operand a, Operand b) { return op(Op::Pow, {a, b}); }
Tensor compare(Operand a, Operand b, std::string direction) {
  return op(Op::Compare, {a, b}, {{"direction", std::move(direction)}});
}
Tensor select(Operand pred, Operand a, Operand b) {
  return op(Op::Select, {pred, a, b});
}

Tensor abs(Operand x) { return op(Op::Abs, {x}); }
Tensor exp(Operand x) { return op(Op::Exp, {x}); }
Tensor log(Operand x) { return op(Op::Log, {x}); }
Tensor sqrt(Operand x) { return op(Op::Sqrt, {x}); }
Tensor rsqrt(Operand x) { return op(Op::Rsqrt, {x}); }
Tensor tanh(Operand x) { return op(Op::Tanh, {x}); }
Tensor sigmoid(Operand x) { return op(Op::Sigmoid, {x}); }
Tensor relu(Operand x) { return op(Op::Relu, {x}); }
Tensor silu(Operand x) { return op(Op::Silu, {x}); }
Tensor gelu(Operand x) { return op(Op::Gelu, {x}); }
Tensor softplus(Operand x) { return op(Op::Softplus, {x}); }
Tensor square(Operand x) { return op(Op::Mul, {x, x}); }
Tensor cast(Operand x, DType dtype) {
  if (x.tensor.dtype() == dtype) return x.tensor;
  return op(Op::Cast, {x}, {{"dtype", dtype}});
}
Tensor stop_gradient(Operand x) { return op(Op::StopGradient, {x}); }

Tensor logical_and(Operand a, Operand b) { return op(Op::And, {a, b}); }
Tensor iota(DType dtype, const Dims& shape, i64 axis) {
  return op(Op::Iota, {},
            {{"dtype", dtype}, {"shape", to_vector(shape)}, {"axis", axis}});
}

Tensor reshape(Operand x, const Dims& shape) {
  if (x.tensor.type().dims == shape) return x.tensor;
  return op(Op::Reshape, {x}, {{"shape", to_vector(shape)}});
}
Tensor broadcast(Operand x, const Dims& shape) {
  if (x.tensor.type().dims == shape) return x.tensor;
  return op(Op::Broadcast, {x}, {{"shape", to_vector(shape)}});
}
Tensor transpose(Operand x, std::vector<i64> perm) {
  return op(Op::Transpose, {x}, {{"perm", std::move(perm)}});
}
Tensor slice(Operand x, i64 axis, i64 start, i64 limit) {
  auto& t = x.tensor.type();
  if (start == 0 && limit == t.dim(axis)) return x.tensor;
  std::vector<i64> lo(size_t(t.rank())), hi = to_vector(t.dims);
  auto at = size_t(axis < 0 ? axis + t.rank() : axis);
  lo[at] = start;
  hi[at] = limit;
  return op(Op::Slice, {x}, {{"start", lo}, {"limit", hi}});
}
Tensor pad_end(Operand x, i64 axis, i64 high) {
  if (high == 0) return x.tensor;
  std::vector<i64> lo(size_t(x.tensor.rank())), hi = lo;
  hi[size_t(axis < 0 ? axis + x.tensor.rank() : axis)] = high;
  return op(Op::Pad, {x}, {{"low", lo}, {"high", hi}});
}
Tensor concat(const std::vector<Operand>& parts, i64 axis) {
  return op(Op::Concat, parts, {{"axis", axis}});
}
Tensor dynamic_slice(Operand x, Operand start, i64 axis, i64 size) {
  return op(Op::DynamicSlice, {x, start}, {{"axis", axis}, {"size", size}});
}
Tensor dynamic_update_slice(Operand x, Operand update, Operand start,
                            i64 axis) {
  return op(Op::DynamicUpdateSlice, {x, update, start}, {{"axis", axis}});
}

Tensor sum(Operand x, std::vector<i64> axes, bool keepdims) {
  return op(Op::Sum, {x}, {{"axes", std::move(axes)}, {"keepdims", keepdims}});
}
Tensor mean(Operand x, std::vector<i64> axes, bool keepdims) {
  return op(Op::Mean, {x}, {{"axes", std::move(axes)}, {"keepdims", keepdims}});
}
Tensor sum(Operand x) { return sum(x, all_axes(x)); }
Tensor mean(Operand x) { return mean(x, all_axes(x)); }
Tensor softmax(Operand x, i64 axis) {
  return op(Op::Softmax, {x}, {{"axis", axis}});
}
Tensor logsumexp(Operand x, i64 axis) {
  return op(Op::LogSumExp, {x}, {{"axis", axis}});
}
Tensor argmax(Operand x, i64 axis) {
  return op(Op::ArgMax, {x}, {{"axis", axis}});
}

Tensor matmul(Operand a, Operand b, MatmulOptions o) {
  return op(Op::Matmul, {a, b},
            {{"transpose_a", o.transpose_a},
             {"transpose_b", o.transpose_b},
             {"scale", o.scale}});
}
Tensor rms_norm(Operand x, Operand gamma, double eps) {
  return op(Op::RmsNorm, {x, gamma}, {{"eps", eps}});
}
Tensor layer_norm(Operand x, Operand gamma, Operand beta, double eps) {
  return op(Op::LayerNorm, {x, gamma, beta}, {{"eps", eps}});
}
Tensor rope(Operand x, double theta, i64 axis) {
  return op(Op::Rope, {x}, {{"theta", theta}, {"axis", axis}});
}
Tensor rope(Operand x, Operand positions, double theta, i64 axis) {
  return op(Op::Rope, {x, positions}, {{"theta", theta}, {"axis", axis}});
}
Tensor causal_mask(Operand scores, i64 window) {
  return op(Op::CausalMask, {scores}, {{"window", window}});
}
Tensor causal_mask(Operand scores, Operand start, i64 window) {
  return op(Op::CausalMask, {scores, start}, {{"window", window}});
}

Tensor embedding(Operand table, Operand ids) {
  return op(Op::Embedding, {table, ids});
}
Tensor gather(Operand table, Operand ids) {
  return op(Op::Gather, {table, ids});
}
Tensor take_along(Operand x, Operand indices) {
  return op(Op::TakeAlong, {x, indices});
}
Tensor put_along(Operand indices, Operand values, i64 size) {
  return op(Op::PutAlong, {indices, values}, {{"size", size}});
}
Tensor one_hot(Operand ids, i64 size) {
  return op(Op::OneHot, {ids}, {{"size", size}});
}
Tensor bincount(Operand ids, i64 size) {
  return op(Op::Bincount, {ids}, {{"size", size}});
}
std::pair<Tensor, Tensor> top_k(Operand x, i64 k) {
  Node* n = record(Op::TopK, {x}, {{"k", k}});
  return {Tensor(n->result(0)), Tensor(n->result(1))};
}
Tensor capacity_keep(Operand indices, CapacityOptions o) {
  return op(Op::CapacityKeep, {indices},
            {{"experts", o.experts},
             {"capacity", o.capacity},
             {"rows", o.rows},
             {"scope", std::string(o.per_row ? "row" : "batch")}});
}

Tensor cross_entropy(Operand logits, Operand targets) {
  return op(Op::CrossEntropy, {logits, targets});
}

Tensor random_normal(Operand key, const Dims& shape, i64 stream) {
  return op(Op::RandomNormal, {key},
            {{"shape", to_vector(shape)}, {"stream", stream}});
}
Tensor random_uniform(Operand key, const Dims& shape, i64 stream) {
  return op(Op::RandomUniform, {key},
            {{"shape", to_vector(shape)}, {"stream", stream}});
}
Tensor dropout(Operand x, Operand key, double p, i64 stream) {
  return op(Op::Dropout, {x, key}, {{"p", p}, {"stream", stream}});
}
Tensor global_norm(const std::vector<Tensor>& xs) {
  return op(Op::GlobalNorm, {xs.begin(), xs.end()});
}

}  // namespace moec::dsl
