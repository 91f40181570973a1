// Feed-forward networks: dense, and as experts that share one router.
#pragma once
#include <string>

#include "frontend/nn.h"
#include "models/moe/config.h"

namespace moec::moe {

using dsl::At;
using dsl::Init;
using dsl::Linear;
using dsl::Operand;
using dsl::Parameter;
using dsl::Tensor;

// How weights start, by the config's `init`:
//   normal  everything normal(0.02);
//   scaled  as normal, but what is added to the residual stream
//           normal(0.02 / sqrt(2 n_layers)) (Radford et al. 2019);
//   xavier  attention and router Glorot-uniform, feed-forward He-normal, the
//           rest normal(0.02), as NanoMoE has it.
struct Inits {
  explicit Inits(const ModelConfig& m);
  Init embedding() const { return dsl::normal(0.02); }
  Init attention(i64 in, i64 out) const;
  Init ffn(i64 in) const;
  Init residual(Init i) const;  // of a projection into the residual stream

 private:
  std::string kind_;
  double layers_;
};

// True where the kind multiplies two projections of the input.
bool is_gated(const std::string& kind);
// The hidden activations of an FFN kind from its projections of the input;
// `gate` is used where is_gated(kind).
Tensor activate(const std::string& kind, Tensor gate, Tensor up);

// x [..., d] -> [..., d]: down(act(gate(x), up(x))).
struct DenseFfn {
  DenseFfn() = default;
  DenseFfn(At at, const ModelConfig& m, const std::string& kind, i64 d_ff);
  Tensor operator()(Operand x) const;

  std::string kind;
  Linear gate, up, down;
};

// All experts on all tokens, weighted by a gate that is zero but for top_k of
// them: the plain meaning, which the pass fuse-moe turns into routed
// execution. x [N,d], gate f32[N,E] -> [N,d].
struct Experts {
  Experts() = default;
  Experts(At at, const Config& c);
  Tensor operator()(Tensor x, Tensor gate) const;

  // weight [E,out,in], bias [E,out] or none
  struct Stack {
    Parameter weight, bias;
    Tensor operator()(Tensor x) const;  // [1|E,N,in] -> [E,N,out]
  };
  std::string kind;
  i64 experts = 0;
  Stack gate, up, down;
};

}  // namespace moec::moe
