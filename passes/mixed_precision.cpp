// Matrix products, attention, experts and the projection of the loss on bf16
// operands with f32 sums inside (Micikevicius et al., "Mixed Precision
// Training", ICLR 2018, with bf16's range and so without loss scaling).
// Weights, optimizer, norms, softmax, losses and the router stay in f32; casts
// stand at the products and fold into their neighbours later.
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

bool is_fused_product(const Node& n) {
  switch (n.op()) {
    case Op::Attention:
    case Op::AttentionGrad:
    case Op::MoeFfn:
    case Op::MoeFfnGrad:
    case Op::LinearCrossEntropy:
    case Op::LinearCrossEntropyGrad:
    case Op::LinearCrossEntropyBoth: return true;
    default: return false;
  }
}

// Statistics, combine weights and the gradient of a loss are no operands to
// round.
bool is_kept(const Node& n, int operand) {
  switch (n.op()) {
    case Op::AttentionGrad: return operand == 4;
    case Op::MoeFfn: return operand == 1;
    case Op::MoeFfnGrad: return operand == 3;
    case Op::LinearCrossEntropyGrad: return operand == 3 || operand == 4;
    case Op::LinearCrossEntropyBoth: return operand == 3;
    default: return false;
  }
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

// What reads each gradient once, the update and the norm, reads it as its
// product rounded it.
void read_rounded(Node& n, DType low) {
  if (n.op() != Op::AdamW && n.op() != Op::GlobalNorm) return;
  for (int i = n.op() == Op::AdamW; i < n.num_operands(); ++i) {
    Node* cast = n.operand(i).node;
    if (cast->op() == Op::Cast && cast->operand(0).type().dtype == low)
      n.set_operand(i, cast->operand(0));
    if (n.op() == Op::AdamW) break;
  }
}

}  // namespace

bool mixed_precision(Graph& g, PassContext& ctx) {
  DType low = ctx.options.compute_dtype;
  if (low == DType::F32) return false;
  auto routers = router_scopes(g);
  const auto& runs = ctx.options.has_lowering;
  absl::flat_hash_map<Value, Value> rounded;
  bool changed = false;
  for (Node* n : g) {
    if (!(is_product(*n) || (is_fused_product(*n) && low == DType::BF16)) ||
        n->type(0).dtype != DType::F32 || routers.contains(n->where.scope))
      continue;
    // Rounding a weight for few rows costs more than it saves.
    if (has_few_rows(*n)) continue;
    Builder b(g, n);
    Values operands(n->operands().begin(), n->operands().end()), fresh;
    for (Value& v : operands) {
      if (v.type().dtype != DType::F32 ||
          is_kept(*n, int(&v - operands.data())))
        continue;
      Value& r = rounded[v];
      if (!r) fresh.push_back(v), r = b.cast(v, low);
      v = r;
    }
    Node* product = b.node(n->op(), operands, n->attr_list());
    if (runs && !runs(*product)) {  // then it stays as it is
      g.erase(product);
      for (Value v : fresh) g.erase(rounded[v].node), rounded.erase(v);
      continue;
    }
    take_names(*n, *product);
    for (int i = 0; i < n->num_results(); ++i)
      g.replace_all_uses(n->result(i),
                         b.cast(product->result(i), n->type(i).dtype));
    g.erase(n);
    changed = true;
  }
  for (Node* n : g) read_rounded(*n, low);
  return changed;
}

}  // namespace moec
