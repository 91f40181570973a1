// Arguments, results, bodies, gradients and constants.
#include <algorithm>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

Types infer_fusion(const InferArgs& a) {
  const Graph* body = a.node.body();
  if (!body) user_error("fusion: has no body");
  if (body->args().size() != a.in.size())
    user_error("fusion: the body has {} arguments for {} operands",
               body->args().size(), a.in.size());
  for (size_t i = 0; i < a.in.size(); ++i)
    if (body->args()[i]->type() != a.in[i])
      user_error("fusion: argument %{} of the body is {}, its operand {}",
                 body->arg_name(int(i)), to_string(body->args()[i]->type()),
                 to_string(a.in[i]));
  Types t;
  for (Value v : body->outputs()) t.push_back(v.type());
  return t;
}

Cost fusion_cost(const Node& n) {
  double flops = 0;
  for (Node* inner : *n.body())
    if (inner->op() != Op::Arg && inner->op() != Op::Return)
      flops += cost_of(*inner).flops;
  return io_cost(n, flops);
}

Types infer_grad(const InferArgs& a) {
  expect_float(a, 0);
  expect_rank(a, 0, 0);
  Types t;
  for (size_t i = 1; i < a.in.size(); ++i) {
    expect_float(a, int(i));
    t.push_back(a.in[i]);
  }
  return t;
}

void eval_grad(const EvalArgs&) {
  user_error("grad: is not executable; run the pass 'grad' first");
}

Types infer_constant(const InferArgs& a) {
  return {Type{a.node.dtype("dtype"), dims_attr(a)}};
}

void eval_constant(const EvalArgs& a) {
  std::fill(a.out[0].data.begin(), a.out[0].data.end(), a.node.f("value"));
}

Types infer_iota(const InferArgs& a) {
  Dims d = dims_attr(a);
  i64 axis = a.node.i("axis"), rank = i64(d.size());
  if (axis < -rank || axis >= rank)
    user_error("iota: axis={} is not an axis of a shape of rank {}", axis,
               rank);
  if (a.node.dtype("dtype") == DType::Bool)
    user_error("iota: dtype should be a number's");
  return {Type{a.node.dtype("dtype"), d}};
}

void eval_iota(const EvalArgs& a) {
  const Type& t = a.out[0].type;
  i64 axis = a.node.i("axis");
  AxisView v(t, axis < 0 ? axis + t.rank() : axis);
  double* y = a.out[0].data.data();
  for (i64 o = 0; o < v.outer; ++o)
    for (i64 i = 0; i < v.n; ++i, y += v.inner)
      std::fill_n(y, v.inner, double(i));
}

const AttrDef kFusionAttrs[] = {
    optional("kind", std::string("loop"), "which code generator takes it")};
const AttrDef kConstantAttrs[] = {
    optional("dtype", DType::F32, "element type"),
    optional("shape", std::vector<i64>{}, "dimensions"),
    required("value", AttrKind::Float, "value of every element")};
const AttrDef kIotaAttrs[] = {
    optional("dtype", DType::I32, "element type"),
    required("shape", AttrKind::Ints, "dimensions"),
    optional("axis", i64(0), "the axis counted along")};

}  // namespace

const OpDef kArg = {
    .name = "arg",
    .summary = "An argument of the function; stands in its head.",
    .traits = kImpure,
    .infer =
        [](const InferArgs& a) {
          return Types(a.node.types().begin(), a.node.types().end());
        },
};

const OpDef kReturn = {
    .name = "return",
    .summary = "The results of the function; its last node.",
    .max_inputs = -1,
    .traits = kImpure,
    .infer = [](const InferArgs&) { return Types{}; },
};

const OpDef kFusion = {
    .name = "fusion",
    .summary =
        "Runs its body, whose arguments stand for the operands, as one "
        "kernel.",
    .max_inputs = -1,
    .traits = kFused,
    .attrs = kFusionAttrs,
    .infer = infer_fusion,
    .decompose =
        [](Builder& b, Node& n) {
          return inline_graph(b, *n.body(), n.operands());
        },
    .cost = fusion_cost,
};

const OpDef kGrad = {
    .name = "grad",
    .summary =
        "d loss / d x for each x after the scalar loss; the pass grad "
        "expands it.",
    .min_inputs = 1,
    .max_inputs = -1,
    .traits = kNotDifferentiable,
    .operand_names = {"loss"},
    .infer = infer_grad,
    .eval = eval_grad,
};

const OpDef kStopGradient = {
    .name = "stop_gradient",
    .summary = "x itself, through which no gradient flows.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kNotDifferentiable | kDataMovement,
    .operand_names = {"x"},
    .infer = [](const InferArgs& a) { return Types{a.in[0]}; },
    .decompose = [](Builder&, Node& n) { return Values{n.operand(0)}; },
    .eval = [](const EvalArgs& a) { a.out[0].data = a.in[0]->data; },
};

const OpDef kConstant = {
    .name = "constant",
    .summary = "A tensor with one value everywhere.",
    .traits = kNotDifferentiable,
    .attrs = kConstantAttrs,
    .infer = infer_constant,
    .eval = eval_constant,
    .cost = [](const Node& n) { return io_cost(n, 0); },
};

const OpDef kIota = {
    .name = "iota",
    .summary = "Each element's index along one axis.",
    .traits = kNotDifferentiable,
    .attrs = kIotaAttrs,
    .infer = infer_iota,
    .eval = eval_iota,
    .cost = [](const Node& n) { return io_cost(n, 0); },
};

}  // namespace moec::ops
