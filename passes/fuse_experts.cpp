// Routed experts in separate ops (what fuse-moe makes) -> moe_ffn: rows are
// gathered in the prologue of the first products, the activation is their
// epilogue, and of the hidden values only the pre-activations are kept.
#include "ir/builder.h"
#include "ir/match.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

constexpr std::string_view kName = "fuse-experts";

struct Projection {
  Node* node = nullptr;  // grouped_matmul(rows, weight, offsets, bias)
  Value weight() const { return node->operand(1); }
  Value bias() const {
    return node->num_operands() > 3 ? node->operand(3) : Value();
  }
};

struct Experts {
  Value x, weights, inverse;  // tokens, [N,k,1], the inverse permutation
  Node* route = nullptr;
  Projection up, gate, down;
  std::string activation;
};

// Any operands: the bias, a fourth one, may be missing.
m::Pattern projection(Projection& p) {
  auto from_route = [](const Node& n) {
    return n.operand(2).node->op() == Op::Route && n.b("transpose_b");
  };
  return m::op(Op::GroupedMatmul)
      .where(from_route, "is no product with weights [E,out,in] by a route")
      .node(&p.node)
      .one_use();
}

// The activation in front of the down projection: which op, in which
// arrangement.
bool match_activation(Value a, Experts& e, std::string* why) {
  auto up = [&] { return projection(e.up); };
  auto gate = [&] { return projection(e.gate); };
  struct Form {
    std::string_view name;
    m::Pattern pattern;
  };
  auto gated = [&](Op f) {
    return m::op(Op::Mul, {m::op(f, {gate()}).one_use(), up()})
        .commutative()
        .one_use();
  };
  Value r;
  auto relu = m::op(Op::Relu, {gate()}).value(&r);
  auto square = m::op(Op::Mul, {relu, m::same(&r)}).one_use();
  const Form forms[] = {
      {"gelu", m::op(Op::Gelu, {up()}).one_use()},
      {"relu", m::op(Op::Relu, {up()}).one_use()},
      {"silu", m::op(Op::Silu, {up()}).one_use()},
      {"swiglu", gated(Op::Silu)},
      {"geglu", gated(Op::Gelu)},
      {"relu2_glu", m::op(Op::Mul, {square, up()}).commutative().one_use()},
      {"gelu_bilinear",
       m::op(Op::Gelu, {m::op(Op::Mul, {gate(), up()}).one_use()}).one_use()},
  };
  for (const Form& f : forms) {
    e.up = e.gate = {};
    if (!m::match(a, f.pattern, why)) continue;
    e.activation = f.name;
    return true;
  }
  *why = "the hidden values are no activation that moe_ffn has";
  return false;
}

// gather(x, token of the slot), the token computed from the route's perm.
bool match_rows(Value rows, Experts& e, std::string* why) {
  auto tokens = m::op(Op::Gather, {m::any(&e.x), m::any()});
  if (!m::match(rows, tokens, why)) return false;
  Value token = rows.node->operand(1);
  for (int depth = 0; depth < 4; ++depth) {
    if (token == e.route->result(1)) return true;
    if (token.node->num_operands() == 0) break;
    token = token.node->operand(0);
  }
  *why = "the rows are not gathered by the route's permutation";
  return false;
}

bool match_experts(Node& sum, Experts& e, std::string* why) {
  Value index;
  auto by_choice =
      m::op(Op::Gather, {projection(e.down), m::any(&index)}).one_use();
  auto weighted =
      m::op(Op::Mul, {by_choice, m::any(&e.weights)}).commutative().one_use();
  auto pattern = m::op(Op::Sum, {weighted}).attr("axes", std::vector<i64>{1});
  if (!m::match(sum.result(), pattern, why)) return false;
  e.route = e.down.node->operand(2).node;
  e.inverse = e.route->result(2);
  if (index.node->op() == Op::Reshape) index = index.node->operand(0);
  if (index != e.inverse) {
    *why = "rows are not combined by the route's inverse permutation";
    return false;
  }
  if (!match_activation(e.down.node->operand(0), e, why)) return false;
  Value rows = e.up.node->operand(0);
  bool same_rows =
      !e.gate.node || (e.gate.node->operand(0) == rows &&
                       e.gate.node->operand(2) == e.up.node->operand(2));
  if (!same_rows || e.up.node->operand(2).node != e.route) {
    *why = "the projections read different rows";
    return false;
  }
  bool biases[] = {bool(e.up.bias()), bool(e.down.bias()),
                   e.gate.node ? bool(e.gate.bias()) : bool(e.up.bias())};
  if (biases[0] != biases[1] || biases[0] != biases[2]) {
    *why = "some projections have a bias and others have none";
    return false;
  }
  return match_rows(rows, e, why);
}

void apply(Graph& g, Node& sum, Experts& e) {
  Builder b(g, &sum);
  b.where = e.down.node->where;
  Dims choices(e.weights.type().dims.begin(), e.weights.type().dims.end() - 1);
  Values operands{e.x,
                  b.reshape(e.weights, choices),
                  e.route->result(0),
                  e.route->result(1),
                  e.inverse,
                  e.up.weight(),
                  e.down.weight()};
  if (e.gate.node) operands.push_back(e.gate.weight());
  if (e.up.bias()) {
    operands.push_back(e.up.bias());
    operands.push_back(e.down.bias());
    if (e.gate.node) operands.push_back(e.gate.bias());
  }
  Node* fused = b.node(Op::MoeFfn, operands, {{"activation", e.activation}});
  fused->names = {sum.names.empty() ? "y" : sum.names[0], "hidden"};
  g.replace_all_uses(sum.result(), b.reshape(fused->result(), sum.type().dims));
  erase_dead(&sum);
}

}  // namespace

bool fuse_experts(Graph& g, PassContext& ctx) {
  bool changed = false;
  for (Node* n : g) {
    if (n->op() != Op::Sum || n->operand(0).type().rank() != 3 ||
        n->operand(0).node->op() != Op::Mul)
      continue;
    Experts experts;
    std::string why;
    if (match_experts(*n, experts, &why)) {
      apply(g, *n, experts);
      changed = true;
    } else {
      ctx.explain(kName, *n, why);
    }
  }
  return changed;
}

}  // namespace moec
