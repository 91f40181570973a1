#include "models/moe/ffn.h"

#include <cmath>

#include "support/error.h"

namespace moec::moe {
using namespace dsl;

Inits::Inits(const ModelConfig& m)
    : kind_(m.init), layers_(double(m.n_layers)) {}

Init Inits::attention(i64 in, i64 out) const {
  if (kind_ != "xavier") return normal(0.02);
  return uniform(std::sqrt(6.0 / double(in + out)));
}
Init Inits::ffn(i64 in) const {
  return normal(kind_ == "xavier" ? std::sqrt(2.0 / double(in)) : 0.02);
}
Init Inits::residual(Init i) const {
  if (kind_ == "scaled") i.scale /= std::sqrt(2 * layers_);
  return i;
}

bool is_gated(const std::string& kind) {
  return kind == "swiglu" || kind == "geglu" || kind == "relu2_glu" ||
         kind == "gelu_bilinear";
}

Tensor activate(const std::string& kind, Tensor gate, Tensor up) {
  if (kind == "gelu") return gelu(up);
  if (kind == "relu") return relu(up);
  if (kind == "silu") return silu(up);
  if (kind == "swiglu") return silu(gate) * up;
  if (kind == "geglu") return gelu(gate) * up;
  if (kind == "relu2_glu") return square(relu(gate)) * up;
  MOEC_CHECK(kind == "gelu_bilinear", "ffn kind {}", kind);
  return gelu(gate * up);
}

DenseFfn::DenseFfn(At at, const ModelConfig& m, const std::string& k, i64 d_ff)
    : kind(k) {
  Inits init(m);
  if (is_gated(kind))
    gate = Linear(at / "gate_proj", m.d_model, d_ff, m.bias.ffn,
                  init.ffn(m.d_model));
  up = Linear(at / "up_proj", m.d_model, d_ff, m.bias.ffn, init.ffn(m.d_model));
  down = Linear(at / "down_proj", d_ff, m.d_model, m.bias.ffn,
                init.residual(init.ffn(d_ff)));
}

Tensor DenseFfn::operator()(Operand x) const {
  Tensor g = is_gated(kind) ? gate(x).named("g") : Tensor();
  Tensor u = up(x).named("u");
  return down(activate(kind, g, u).named("a"));
}

Experts::Experts(At at, const Config& c)
    : kind(c.model.ffn), experts(c.moe.experts) {
  auto& m = c.model;
  Inits init(m);
  auto stack = [&](const char* name, i64 in, i64 out, Init w) {
    Stack s;
    s.weight = (at / name).parameter("weight", {experts, out, in}, w);
    if (m.bias.ffn)
      s.bias = (at / name).parameter("bias", {experts, out}, zeros());
    return s;
  };
  if (is_gated(kind))
    gate = stack("gate_proj", m.d_model, m.d_ff, init.ffn(m.d_model));
  up = stack("up_proj", m.d_model, m.d_ff, init.ffn(m.d_model));
  down = stack("down_proj", m.d_ff, m.d_model, init.residual(init.ffn(m.d_ff)));
}

Tensor Experts::Stack::operator()(Tensor x) const {
  Tensor y = matmul(x, weight, {.transpose_b = true});
  if (!bias) return y;
  Tensor b = Operand(bias).tensor;
  return y + reshape(b, {b.dim(0), 1, b.dim(1)});
}

Tensor Experts::operator()(Tensor x, Tensor gates) const {
  i64 n = x.dim(0), d = x.dim(1);
  Tensor xs = reshape(x, {1, n, d});
  Tensor g = is_gated(kind) ? gate(xs).named("g") : Tensor();
  Tensor u = up(xs).named("u");
  Tensor y = down(activate(kind, g, u).named("a")).named("y");
  Tensor w = reshape(transpose(gates, {1, 0}), {experts, n, 1});
  return sum(y * w, {0});
}

}  // namespace moec::moe
