// Matrix products, attention and the fused loss on bf16 operands with f32 sums
// inside
// (Micikevicius et al., "Mixed Precision Training", ICLR 2018, with bf16's
// range and so without loss scaling). Weights, optimizer, norms, softmax,
// losses and the router stay in f32; casts stand at the products and fold into
// their neighbours later.
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include "ir/builder.h"
#include "passes/few_rows.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

bool is_product(const Node& n) {
  return n.op() == Op::Matmul || n.op() == Op::GroupedMatmul ||
         n.op() == Op::GroupedMatmulDw;
}

bool is_attention(const Node& n) {
  return n.op() == Op::Attention || n.op() == Op::AttentionGrad;
}

bool is_loss(const Node& n) {
  return n.op() == Op::LinearCrossEntropy ||
         n.op() == Op::LinearCrossEntropyGrad ||
         n.op() == Op::LinearCrossEntropyBoth;
}

// Statistics and the gradient of a loss are no operands to round.
bool is_kept(const Node& n, int operand) {
  if (n.op() == Op::AttentionGrad) return operand == 4;
  if (n.op() == Op::LinearCrossEntropyGrad) return operand == 3 || operand == 4;
  return n.op() == Op::LinearCrossEntropyBoth && operand == 3;
}

// Which expert a token goes to must not hang on rounding, so products that a
// top_k shares its scope with keep f32, and their gradients, which have the
// same scope.
absl::flat_hash_set<std::string> router_scopes(const Graph& g) {
  absl::flat_hash_set<std::string> scopes;
  for (Node* n : g)
    if (n->op() == Op::TopK && !n->where.scope.empty())
      scopes.insert(n->where.scope);
  return scopes;
}

}  // namespace

bool mixed_precision(Graph& g, PassContext& ctx) {
  DType low = ctx.options.compute_dtype;
  if (low == DType::F32) return false;
  auto routers = router_scopes(g);
  absl::flat_hash_map<Value, Value> rounded;
  bool changed = false;
  for (Node* n : g) {
    const bool fused = is_attention(*n) || is_loss(*n);
    if (!(is_product(*n) || (fused && low == DType::BF16)) ||
        n->type(0).dtype != DType::F32 || routers.contains(n->where.scope))
      continue;
    // Rounding a weight for few rows costs more than it saves.
    if (has_few_rows(*n)) continue;
    Builder b(g, n);
    Values operands(n->operands().begin(), n->operands().end());
    for (Value& v : operands) {
      if (v.type().dtype != DType::F32 ||
          is_kept(*n, int(&v - operands.data())))
        continue;
      Value& r = rounded[v];
      if (!r) r = b.cast(v, low);
      v = r;
    }
    Node* product = b.node(n->op(), operands, n->attr_list());
    take_names(*n, *product);
    for (int i = 0; i < n->num_results(); ++i)
      g.replace_all_uses(n->result(i),
                         b.cast(product->result(i), n->type(i).dtype));
    g.erase(n);
    changed = true;
  }
  return changed;
}

}  // namespace moec
