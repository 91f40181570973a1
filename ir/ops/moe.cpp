// Routed experts as one op, forward and backward.
#include <algorithm>
#include <array>

#include "ir/ops/common.h"

namespace moec::ops {
namespace {

using Gradients = absl::Span<const Value>;

constexpr std::array<std::string_view, 7> kActivations = {
    "gelu", "relu", "silu", "swiglu", "geglu", "relu2_glu", "gelu_bilinear"};

bool is_gated(std::string_view activation) {
  return activation == "swiglu" || activation == "geglu" ||
         activation == "relu2_glu" || activation == "gelu_bilinear";
}

// Where the operands stand: gate only if the activation has one, biases all or
// none. The gradient has dy and h before them.
struct Operands {
  int x, weights, offsets, perm, inverse, up, down, end;
  int gate = -1, bias_up = -1, bias_down = -1, bias_gate = -1;

  Operands(int first, int count, bool gated)
      : x(first),
        weights(first + 1),
        offsets(first + 2),
        perm(first + 3),
        inverse(first + 4),
        up(first + 5),
        down(first + 6),
        end(first + 7) {
    if (gated) gate = end++;
    if (count <= end) return;
    bias_up = end++, bias_down = end++;
    if (gated) bias_gate = end++;
  }
};

Operands operands_of(const Node& n, int count) {
  return {n.op() == Op::MoeFfn ? 0 : 2, count, is_gated(n.s("activation"))};
}

// Pre-activations of all slots, in panels of at most 48: every expert's slots
// are rounded up to whole panels.
Dims saved_dims(const Node& n, i64 slots, i64 experts, i64 hidden) {
  i64 rows = is_gated(n.s("activation")) ? 2 * hidden : hidden;
  return {slots + 48 * experts, rows};
}

void check_operands(const InferArgs& a) {
  const std::string& act = a.node.s("activation");
  if (std::find(kActivations.begin(), kActivations.end(), act) ==
      kActivations.end())
    user_error("{}: activation \"{}\" is unknown", op_of(a), act);
  Operands o = operands_of(a.node, int(a.in.size()));
  if (o.end != int(a.in.size()))
    user_error("{}: {} operands; activation {} takes {}, or {} with biases",
               op_of(a), a.in.size(), act, o.x + (is_gated(act) ? 8 : 7),
               o.x + (is_gated(act) ? 11 : 9));
  const Type &x = a.in[o.x], &w = a.in[o.weights], &up = a.in[o.up];
  expect_float(a, o.x);
  expect_rank(a, o.x, 2);
  expect_dtype(a, o.weights, stat_dtype(x.dtype));
  expect_rank(a, o.weights, 2);
  if (w.dims[0] != x.dims[0])
    user_error("{}: {} should have as many rows as {}", op_of(a),
               describe(a, o.weights), describe(a, o.x));
  expect_rank(a, o.up, 3);
  i64 experts = up.dims[0], hidden = up.dims[1], slots = w.numel();
  for (int i : {o.offsets, o.perm, o.inverse}) expect_dtype(a, i, DType::I32);
  expect_dims(a, o.offsets, {experts + 1});
  expect_dims(a, o.perm, {slots});
  expect_dims(a, o.inverse, {slots});
  auto expect = [&](int i, Dims dims) {
    if (i < 0) return;
    expect_dtype_of(a, i, o.x);
    expect_dims(a, i, dims);
  };
  i64 d = x.dims[1];
  // Weights may be stored in bf16 beside f32 activations.
  const DType stored = up.dtype;
  auto expect_weight = [&](int i, Dims dims) {
    if (i < 0) return;
    if (stored == DType::BF16 && x.dtype == DType::F32)
      expect_dtype(a, i, stored);
    else
      expect_dtype_of(a, i, o.x);
    expect_dims(a, i, dims);
  };
  expect_weight(o.up, {experts, hidden, d});
  expect_weight(o.gate, {experts, hidden, d});
  expect_weight(o.down, {experts, d, hidden});
  expect(o.bias_up, {experts, hidden});
  expect(o.bias_gate, {experts, hidden});
  expect(o.bias_down, {experts, d});
}

Types infer_moe(const InferArgs& a) {
  check_operands(a);
  const Type &x = a.in[0], &up = a.in[5];
  return {x, Type{x.dtype,
                  saved_dims(a.node, a.in[1].numel(), up.dims[0], up.dims[1])}};
}

Types infer_moe_grad(const InferArgs& a) {
  check_operands(a);
  Operands o = operands_of(a.node, int(a.in.size()));
  const Type& up = a.in[o.up];
  expect_dtype_of(a, 0, o.x);
  expect_dims(a, 0, a.in[o.x].dims);
  expect_dtype_of(a, 1, o.x);
  expect_dims(
      a, 1,
      saved_dims(a.node, a.in[o.weights].numel(), up.dims[0], up.dims[1]));
  Types t = {a.in[o.x], a.in[o.weights]};
  for (int i = o.up; i < o.end; ++i) t.push_back(a.in[i]);
  return t;
}

// The grouped form: rows gathered in the order of the experts, products over
// the groups, rows combined by the inverse permutation.
struct Grouped {
  Builder& b;
  const Node& n;
  Operands o;
  std::string activation;
  i64 k, slots;
  Value xs, up, gate, inner, act, a;  // by slot; `act` is the unary's result

  Grouped(Builder& builder, const Node& node)
      : b(builder),
        n(node),
        o(operands_of(node, node.num_operands())),
        activation(node.s("activation")),
        k(in(o.weights).type().dims[1]),
        slots(in(o.weights).type().numel()) {
    xs = b.op(Op::Gather, {in(o.x), token_of_slot()});
    up = product(xs, o.up, o.bias_up, true);
    if (o.gate >= 0) gate = product(xs, o.gate, o.bias_gate, true);
    inner = !gate ? up : activation == "gelu_bilinear" ? b.mul(gate, up) : gate;
    act = b.op(unary(), {inner});
    Value f = activation == "relu2_glu" ? b.mul(act, act) : act;
    a = gate && inner == gate ? b.mul(f, up) : f;
  }

  Value in(int i) const { return n.operand(i); }
  Op unary() const {
    if (activation == "relu" || activation == "relu2_glu") return Op::Relu;
    if (activation == "silu" || activation == "swiglu") return Op::Silu;
    return Op::Gelu;
  }
  Value token_of_slot() const {
    Value perm = in(o.perm);
    Value used = b.compare(perm, b.scalar(0, DType::I32), "ge");
    Value token = b.div(perm, b.scalar(double(k), DType::I32));
    return b.select(used, token, b.scalar(-1, DType::I32));
  }
  Value product(Value rows, int w, int bias, bool transposed) const {
    Value weight = b.cast(in(w), rows.type().dtype);
    Values operands = {rows, weight, in(o.offsets)};
    if (bias >= 0) operands.push_back(in(bias));
    return b.node(Op::GroupedMatmul, operands, {{"transpose_b", transposed}})
        ->result();
  }
  Value weight_gradient(Value rows, Value dy) const {
    return b.op(Op::GroupedMatmulDw, {rows, dy, in(o.offsets)},
                {{"transpose", true}});
  }
  Value bias_gradient(Value dy) const {
    return b.op(Op::SegmentSum, {dy, in(o.offsets)});
  }
  // [N,k,d]: rows of the slots, zero for dropped choices.
  Value by_choice(Value rows) const {
    Value inv = b.reshape(in(o.inverse), in(o.weights).type().dims);
    return b.op(Op::Gather, {rows, inv});
  }
  Value as_column(Value w) const {  // [N,k] -> [N,k,1], in x's dtype
    Dims dims = w.type().dims;
    dims.push_back(1);
    return b.reshape(b.cast(w, in(o.x).type().dtype), dims);
  }
  Value outputs() const {
    return by_choice(product(a, o.down, o.bias_down, true));
  }
  // Gradient of the unary function's argument.
  Value through(Value df) const {
    if (activation == "relu2_glu") df = b.mul(b.mul(df, act), 2.0);
    return def(unary()).vjp(b, *act.node, {df})[0];
  }
};

Values decompose_moe(Builder& b, Node& n) {
  Grouped g(b, n);
  Value y = b.sum(b.mul(g.outputs(), g.as_column(g.in(g.o.weights))), {1});
  // h is for the gradient alone, whose decomposition computes it again
  return {y, b.constant(n.type(1), 0)};
}

Values decompose_moe_grad(Builder& b, Node& n) {
  Grouped g(b, n);
  const Operands& o = g.o;
  Value dy = n.operand(0), x = g.in(o.x), w = g.in(o.weights);
  const i64 tokens = x.type().dims[0], d = x.type().dims[1];
  Value row = b.reshape(dy, {tokens, 1, d});
  Value dw = b.cast(b.sum(b.mul(row, g.outputs()), {2}), w.type().dtype);
  Value weighted = b.reshape(b.mul(row, g.as_column(w)), {g.slots, d});
  Value dys = b.op(Op::Gather, {weighted, g.in(o.perm)});
  Value da = g.product(dys, o.down, -1, false);

  Value du, dg;
  if (!g.gate) {
    du = g.through(da);
  } else if (g.activation == "gelu_bilinear") {
    Value inner = g.through(da);
    du = b.mul(inner, g.gate), dg = b.mul(inner, g.up);
  } else {
    Value f = g.activation == "relu2_glu" ? b.mul(g.act, g.act) : g.act;
    du = b.mul(da, f), dg = g.through(b.mul(da, g.up));
  }
  Value dxs = g.product(du, o.up, -1, false);
  if (dg) dxs = b.add(dxs, g.product(dg, o.gate, -1, false));
  Values out = {b.sum(g.by_choice(dxs), {1}), dw, g.weight_gradient(g.xs, du),
                g.weight_gradient(g.a, dys)};
  if (dg) out.push_back(g.weight_gradient(g.xs, dg));
  if (o.bias_up >= 0) {
    out.push_back(g.bias_gradient(du));
    out.push_back(g.bias_gradient(dys));
    if (dg) out.push_back(g.bias_gradient(dg));
  }
  return out;
}

Values vjp_moe(Builder& b, Node& n, Gradients dy) {
  Values g(size_t(n.num_operands()));
  if (!dy[0]) return g;
  if (n.operand(5).type().dtype != n.operand(0).type().dtype)
    user_error("moe_ffn: has no gradient where weights are stored in bf16");
  Values in = {dy[0], n.result(1)};
  in.insert(in.end(), n.operands().begin(), n.operands().end());
  Node* grad = b.node(Op::MoeFfnGrad, in, n.attr_list());
  g[0] = grad->result(0), g[1] = grad->result(1);
  for (int i = 5; i < n.num_operands(); ++i) g[i] = grad->result(i - 3);
  return g;
}

Cost moe_cost(const Node& n) {
  Operands o = operands_of(n, n.num_operands());
  const Dims& up = n.operand(o.up).type().dims;
  double matrices = o.gate >= 0 ? 3 : 2;
  double product = 2.0 * double(n.operand(o.weights).type().numel()) *
                   double(up[1]) * double(up[2]);
  return io_cost(n, (n.op() == Op::MoeFfn ? 1 : 2) * matrices * product);
}

const AttrDef kMoeAttrs[] = {
    required("activation", AttrKind::String,
             "gelu|relu|silu of up, or swiglu|geglu|relu2_glu|gelu_bilinear")};

}  // namespace

const OpDef kMoeFfn = {
    .name = "moe_ffn",
    .summary =
        "y[n] = sum_j w[n,j] FFN_e(x[n]) over the experts e that token n is "
        "routed to (offsets, perm, inverse as route gives them), with "
        "w_up, w_gate [E,hidden,d] and w_down [E,d,hidden]; w_gate stands "
        "before the biases if the activation has one. Weights may be bf16 "
        "beside an f32 x. h is saved for moe_ffn_grad, in the backend's own "
        "layout.",
    .min_inputs = 7,
    .max_inputs = 11,
    .traits = kFused,
    .attrs = kMoeAttrs,
    .operand_names = {"x", "w", "offsets", "perm", "inverse", "w_up", "w_down",
                      "w_gate", "b_up", "b_down", "b_gate"},
    .infer = infer_moe,
    .vjp = vjp_moe,
    .decompose = decompose_moe,
    .cost = moe_cost,
};

const OpDef kMoeFfnGrad = {
    .name = "moe_ffn_grad",
    .summary =
        "Gradients of moe_ffn: dx, dw, and those of w_up, w_down, w_gate and "
        "the biases, in the order of the operands.",
    .min_inputs = 9,
    .max_inputs = 13,
    .traits = kFused,
    .attrs = kMoeAttrs,
    .operand_names = {"dy", "h", "x", "w", "offsets", "perm", "inverse", "w_up",
                      "w_down", "w_gate", "b_up", "b_down", "b_gate"},
    .infer = infer_moe_grad,
    .decompose = decompose_moe_grad,
    .cost = moe_cost,
};

}  // namespace moec::ops
