#include "frontend/nn.h"

namespace moec::dsl {

Linear::Linear(At at, i64 in, i64 out, bool with_bias, Init init)
    : weight(at.parameter("weight", {out, in}, init)) {
  if (with_bias) bias = at.parameter("bias", {out}, zeros());
}
Tensor Linear::operator()(Operand x) const {
  Tensor y = matmul(x, Operand(weight, x.where), {.transpose_b = true});
  return bias ? Operand(y, x.where) + Operand(bias, x.where) : y;
}

Embedding::Embedding(At at, i64 rows, i64 width, Init init)
    : weight(at.parameter("weight", {rows, width}, init)) {}
Tensor Embedding::operator()(Operand ids) const {
  return embedding(Operand(weight, ids.where), ids);
}

RmsNorm::RmsNorm(At at, i64 width, double e)
    : weight(at.parameter("weight", {width}, ones())), eps(e) {}
Tensor RmsNorm::operator()(Operand x) const {
  return rms_norm(x, Operand(weight, x.where), eps);
}

LayerNorm::LayerNorm(At at, i64 width, double e)
    : weight(at.parameter("weight", {width}, ones())),
      bias(at.parameter("bias", {width}, zeros())),
      eps(e) {}
Tensor LayerNorm::operator()(Operand x) const {
  return layer_norm(x, Operand(weight, x.where), Operand(bias, x.where), eps);
}

Tensor Dropout::operator()(Operand x) const {
  if (p == 0 || !training_key()) return x.tensor;
  return dropout(x, training_key(), p, next_random_stream());
}

}  // namespace moec::dsl
