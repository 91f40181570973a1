// Counter-based random numbers: an element is a function of the key, the
// stream and its index alone (support/rng.h).
#include "support/rng.h"

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

Types infer_random(const InferArgs& a) {
  expect_key(a, 0);
  return {Type{DType::F32, dims_attr(a)}};
}

template <double (*from_word)(uint32_t)>
void eval_random(const EvalArgs& a) {
  uint64_t key = key_of(*a.in[0]);
  auto stream = uint64_t(a.node.i("stream"));
  auto& y = a.out[0].data;
  for (size_t i = 0; i < y.size(); ++i)
    y[i] = from_word(random_word(key, stream, i64(i)));
}

double uniform(uint32_t w) { return uniform_from_word<double>(w); }
double normal(uint32_t w) { return normal_from_word<double>(w); }

Types infer_dropout(const InferArgs& a) {
  expect_float(a, 0);
  expect_key(a, 1);
  double p = a.node.f("p");
  if (!(p >= 0 && p < 1)) user_error("dropout: p={} should be in [0, 1)", p);
  return {a.in[0]};
}

void eval_dropout(const EvalArgs& a) {
  uint64_t key = key_of(*a.in[1]);
  auto stream = uint64_t(a.node.i("stream"));
  double p = a.node.f("p"), scale = 1 / (1 - p);
  uint32_t threshold = dropout_threshold(p);
  auto& y = a.out[0].data;
  for (size_t i = 0; i < y.size(); ++i)
    y[i] = random_word(key, stream, i64(i)) < threshold
               ? 0
               : a.in[0]->data[i] * scale;
}

Values vjp_dropout(Builder& b, Node& n, Gradients dy) {
  return {b.op(Op::Dropout, {dy[0], n.operand(1)},
               {{"p", n.f("p")}, {"stream", n.i("stream")}}),
          {}};
}

const AttrDef kRandomAttrs[] = {
    required("shape", AttrKind::Ints, "dimensions"),
    optional("stream", i64(0), "which of the key's sequences")};
const AttrDef kDropoutAttrs[] = {
    required("p", AttrKind::Float, "share of elements dropped, in [0, 1)"),
    optional("stream", i64(0), "which of the key's sequences")};

// Ten rounds of Philox for four elements, and the conversion.
Cost random_cost(const Node& n) {
  return io_cost(n, 20.0 * double(n.type().numel()));
}

}  // namespace

const OpDef kRandomUniform = {
    .name = "random_uniform",
    .summary = "Uniform numbers in (0, 1).",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kNotDifferentiable,
    .attrs = kRandomAttrs,
    .operand_names = {"key"},
    .infer = infer_random,
    .eval = eval_random<uniform>,
    .cost = random_cost,
};

const OpDef kRandomNormal = {
    .name = "random_normal",
    .summary = "Standard normal numbers.",
    .min_inputs = 1,
    .max_inputs = 1,
    .traits = kNotDifferentiable,
    .attrs = kRandomAttrs,
    .operand_names = {"key"},
    .infer = infer_random,
    .eval = eval_random<normal>,
    .cost = random_cost,
};

const OpDef kDropout = {
    .name = "dropout",
    .summary =
        "Drops elements with probability p and scales the rest by "
        "1 / (1 - p).",
    .min_inputs = 2,
    .max_inputs = 2,
    .attrs = kDropoutAttrs,
    .operand_names = {"x", "key"},
    .infer = infer_dropout,
    .vjp = vjp_dropout,
    .eval = eval_dropout,
    .cost = random_cost,
};

}  // namespace moec::ops
