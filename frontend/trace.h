// Tracing: running DSL code once records it as a graph.
//
//   auto graph = trace("loss", params, [&] {
//     Tensor tokens = input("tokens", DType::I32, {B, T});
//     return Outputs{{"loss", model(tokens)}};
//   });
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/parameters.h"
#include "frontend/tensor.h"
#include "support/function_ref.h"

namespace moec::dsl {

struct Output {
  std::string name;  // an argument's name: its buffer is donated
  Tensor value;
};
using Outputs = std::vector<Output>;

// Records `body`. The graph's arguments are all parameters, under their names
// and in their order, then the inputs in the order of their first use.
// Traces do not nest.
std::unique_ptr<Graph> trace(std::string name, const Parameters& params,
                             FunctionRef<Outputs()> body);
std::unique_ptr<Graph> trace(std::string name, FunctionRef<Outputs()> body);

// An argument of the current trace; names are unique.
Tensor input(std::string name, DType dtype, Dims dims);
// All parameters of the current trace, in order.
std::vector<Tensor> parameter_tensors();

// Names the part of the model that ops recorded in its lifetime belong to.
class Scope {
 public:
  explicit Scope(std::string_view name);  // "moe" within "layer0"
  ~Scope();
  Scope(const Scope&) = delete;

 private:
  size_t outer_;
};

// While it lives, dropout and router noise are on and draw from `key`, a
// u32[2] that differs from step to step. Every place that draws gets a stream
// of its own, counted from 0 in each trace.
class Training {
 public:
  explicit Training(Tensor key);
  ~Training();
  Training(const Training&) = delete;
};
// The key, or none outside training.
Tensor training_key();
i64 next_random_stream();

// d loss / d x for each x, recorded as one `grad` op. `loss` is an f32[].
std::vector<Tensor> grad(Operand loss, const std::vector<Tensor>& xs);

struct ValueAndGrad {
  Tensor value;
  std::vector<Tensor> grads;  // one per parameter, in order
};
// Runs `loss` and differentiates it by all parameters of the trace.
ValueAndGrad value_and_grad(
    FunctionRef<Tensor()> loss,
    std::source_location where = std::source_location::current());

// Records one op, for ops without a function in frontend/ops.h.
Node* record(Op op, std::vector<Operand> operands, const AttrList& attrs = {});

}  // namespace moec::dsl
