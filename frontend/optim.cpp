#include "frontend/optim.h"

#include "frontend/ops.h"
#include "support/error.h"

namespace moec::dsl {

std::string first_moment(std::string_view parameter) {
  return "adamw.m." + std::string(parameter);
}
std::string second_moment(std::string_view parameter) {
  return "adamw.v." + std::string(parameter);
}

AdamWStep adamw(const Parameters& params, const std::vector<Tensor>& grads,
                Tensor lr, Tensor step, const AdamWOptions& o) {
  MOEC_CHECK(grads.size() == size_t(params.size()), "{} gradients",
             grads.size());
  std::vector<Tensor> m, v, p = parameter_tensors();
  for (auto& info : params.all())
    m.push_back(input(first_moment(info.name), DType::F32, info.dims));
  for (auto& info : params.all())
    v.push_back(input(second_moment(info.name), DType::F32, info.dims));

  Scope scope("adamw");
  AdamWStep result;
  result.grad_norm = global_norm(grads).named("grad_norm");
  // 1e-6 keeps the quotient finite where all gradients are zero.
  Tensor scale =
      o.clip > 0 ? minimum(o.clip / (result.grad_norm + 1e-6), 1.0)
                 : Tensor(record(Op::Constant, {}, {{"value", 1.0}})->result());
  Outputs first, second;
  for (int i = 0; i < params.size(); ++i) {
    bool decay = !o.decay_matrices_only || params[i].dims.size() >= 2;
    Node* n = record(Op::AdamW, {p[i], grads[i], m[i], v[i], lr, step, scale},
                     {{"beta1", o.beta1},
                      {"beta2", o.beta2},
                      {"eps", o.eps},
                      {"weight_decay", decay ? o.weight_decay : 0.0}});
    auto& name = params[i].name;
    result.outputs.push_back({name, Tensor(n->result(0))});
    first.push_back({first_moment(name), Tensor(n->result(1))});
    second.push_back({second_moment(name), Tensor(n->result(2))});
  }
  for (auto* part : {&first, &second})
    result.outputs.insert(result.outputs.end(), part->begin(), part->end());
  return result;
}

}  // namespace moec::dsl
