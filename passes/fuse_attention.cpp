// softmax(mask(scale Q K^T)) V -> attention: the scores are never stored.
//
// Heads may be any batch dimensions, shared keys a dimension of size 1 beside
// one of Q ([B,Hkv,G,T,D] against [B,Hkv,1,T,D]).
#include <fmt/format.h>

#include "ir/builder.h"
#include "ir/match.h"
#include "ir/op_def.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

constexpr std::string_view kName = "fuse-attention";

struct Parts {
  Value q, k, v, key, start;
  Node *scores = nullptr, *mask = nullptr, *dropout = nullptr;
};

bool match_parts(Node& root, Parts& p, std::string* why) {
  auto scores = m::op(Op::Matmul, {m::any(&p.q), m::any(&p.k)})
                    .attr("transpose_a", false)
                    .attr("transpose_b", true)
                    .node(&p.scores)
                    .one_use();
  auto masked = m::op(Op::CausalMask, {scores}).node(&p.mask).one_use();
  auto cached =
      m::op(Op::CausalMask, {scores, m::any(&p.start)}).node(&p.mask).one_use();
  auto weights = m::op(Op::Softmax, {m::one_of({scores, masked, cached})})
                     .attr("axis", i64(-1))
                     .one_use();
  auto dropped =
      m::op(Op::Dropout, {weights, m::any(&p.key)}).node(&p.dropout).one_use();
  auto product =
      m::op(Op::Matmul, {m::one_of({weights, dropped}), m::any(&p.v)})
          .attr("transpose_a", false)
          .attr("transpose_b", false)
          .attr("scale", 1.0);
  return m::match(root.result(), product, why);
}

// Batch, heads and heads per key of q, given the operand that may share.
struct Heads {
  i64 batch = 1, count = 1, kv_count = 1;
};

i64 product(const Dims& d, size_t begin, size_t end) {
  i64 n = 1;
  for (size_t i = begin; i < end; ++i) n *= d[i];
  return n;
}

// The batch dimensions of q are [batch..., kv heads..., sharing heads...]:
// those of k are equal up to some place and 1 after it.
bool heads_of(const Type& q, const Type& k, const Type& v, Heads& h) {
  size_t rank = q.dims.size();
  if (k.dims.size() != rank || v.dims.size() != rank) return false;
  size_t shared = rank - 2;
  while (shared > 0 && k.dims[shared - 1] == 1) --shared;
  for (size_t i = 0; i + 2 < rank; ++i) {
    if (k.dims[i] != v.dims[i]) return false;
    if (i < shared && k.dims[i] != q.dims[i]) return false;
  }
  size_t batch = rank > 3 ? 1 : 0;
  if (batch > shared && q.dims[0] != k.dims[0]) return false;
  h.batch = product(q.dims, 0, batch);
  h.count = product(q.dims, batch, rank - 2);
  h.kv_count = product(k.dims, batch, rank - 2);
  return true;
}

Value four_dims(Builder& b, Value v, i64 batch, i64 heads) {
  Dims d{batch, heads, v.type().dim(-2), v.type().dim(-1)};
  // A reshape from that form is undone rather than repeated.
  if (v.node->op() == Op::Reshape && v.node->operand(0).type().dims == d)
    return v.node->operand(0);
  return b.reshape(v, d);
}

void apply(Graph& g, Node& root, const Parts& p, const Heads& h) {
  Builder b(g, &root);
  Value q = four_dims(b, p.q, h.batch, h.count);
  Value k = four_dims(b, p.k, h.batch, h.kv_count);
  Value v = four_dims(b, p.v, h.batch, h.kv_count);
  AttrList attrs{{"scale", p.scores->f("scale")}};
  if (p.start) {
    // Caches keep the heads of a position together, as projections do.
    auto flip = [&](Value x) { return b.transpose(x, {0, 2, 1, 3}); };
    attrs.emplace_back("window", p.mask->i("window"));
    Node* fused = b.node(Op::CachedAttention,
                         {flip(q), flip(k), flip(v), p.start}, attrs);
    take_names(root, *fused);
    Value o = b.reshape(flip(fused->result()), root.type().dims);
    g.replace_all_uses(root.result(), o);
    return erase_dead(&root);
  }
  if (p.mask) {
    attrs.emplace_back("causal", true);
    attrs.emplace_back("window", p.mask->i("window"));
  }
  Values operands{q, k, v};
  if (p.dropout) {
    attrs.emplace_back("dropout", p.dropout->f("p"));
    attrs.emplace_back("stream", p.dropout->i("stream"));
    operands.push_back(p.key);
  }
  Node* fused = b.node(Op::Attention, operands, attrs);
  fused->names = {root.names.empty() ? "o" : root.names[0], "lse"};
  g.replace_all_uses(root.result(),
                     b.reshape(fused->result(), root.type().dims));
  erase_dead(&root);
}

// The sizes that the op asks for, in the order of its checks.
std::string_view misfit(const Parts& p, Heads& h) {
  if (!heads_of(p.q.type(), p.k.type(), p.v.type(), h))
    return "batch dimensions of q, k and v are not heads over shared keys";
  if (p.start) return p.dropout ? "a cache has no dropout" : "";
  if (p.mask && p.k.type().dim(-2) < p.q.type().dim(-2))
    return "there are fewer keys than queries under a causal mask";
  return {};
}

}  // namespace

bool fuse_attention(Graph& g, PassContext& ctx) {
  bool changed = false;
  for (Node* n : g) {
    if (n->op() != Op::Matmul) continue;
    Node* first = n->operand(0).node;
    if (first->op() == Op::Dropout) first = first->operand(0).node;
    if (first->op() != Op::Softmax) continue;
    Parts parts;
    Heads heads;
    std::string why;
    Op before = first->operand(0).node->op();
    if (match_parts(*n, parts, &why))
      why = misfit(parts, heads);
    else if (before == Op::Select || before == Op::Add)
      why = fmt::format("the scores go through {}, which is no causal_mask",
                        op_name(before));
    if (!why.empty()) {
      ctx.explain(kName, *n, why);
      continue;
    }
    apply(g, *n, parts, heads);
    changed = true;
  }
  return changed;
}

}  // namespace moec
