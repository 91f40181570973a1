// cross_entropy(x W^T (+ bias), targets) -> linear_cross_entropy: the logits
// [tokens, vocabulary] are made and used in chunks and never stored.
#include "ir/builder.h"
#include "ir/match.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

struct Head {
  Value x, w, bias;
};

bool match_head(Value logits, Head& head, std::string* why) {
  auto is_matrix = [](const Node& n) {
    return n.operand(1).type().rank() == 2;
  };
  auto product = m::op(Op::Matmul, {m::any(&head.x), m::any(&head.w)})
                     .attr("transpose_b", true)
                     .attr("transpose_a", false)
                     .attr("scale", 1.0)
                     .where(is_matrix, "has no weight matrix [V,d]")
                     .one_use();
  auto with_bias =
      m::op(Op::Add, {product, m::any(&head.bias)}).commutative().one_use();
  auto value = m::one_of({with_bias, product});
  auto reshaped = m::op(Op::Reshape, {value}).one_use();
  return m::match(logits, m::one_of({reshaped, value}), why);
}

bool fuse(Graph& g, Node& n, PassContext& ctx) {
  Head head;
  std::string why;
  if (!match_head(n.operand(0), head, &why)) {
    ctx.explain("fuse-cross-entropy", n, why);
    return false;
  }
  i64 vocabulary = head.w.type().dims[0], width = head.w.type().dims[1];
  const Type& logits = n.operand(0).type();
  if (logits.dims.back() != vocabulary ||
      (head.bias && head.bias.type().numel() != vocabulary)) {
    ctx.explain("fuse-cross-entropy", n,
                "the logits are not one row of the vocabulary per token");
    return false;
  }
  Builder b(g, &n);
  Values operands{b.reshape(head.x, {logits.dims[0], width}), head.w,
                  n.operand(1)};
  if (head.bias) operands.push_back(b.reshape(head.bias, {vocabulary}));
  Node* fused = b.node(Op::LinearCrossEntropy, operands);
  take_names(n, *fused);
  for (int i = 0; i < n.num_results(); ++i)
    g.replace_all_uses(n.result(i), fused->result(i));
  erase_dead(&n);
  return true;
}

}  // namespace

bool fuse_cross_entropy(Graph& g, PassContext& ctx) {
  bool changed = false;
  for (Node* n : g)
    if (n->op() == Op::CrossEntropy) changed |= fuse(g, *n, ctx);
  return changed;
}

}  // namespace moec
