// Dense meaning of an expert layer -> routed execution.
//
//   out[n] = sum_e gate[e,n] * Y[e,n],  gate = put_along(idx[N,k], w[N,k])
//
// The gate is zero but for k experts of each token, so only S = N*k rows of Y
// are needed. Every value of the cone from Y back to the tokens that varies
// with expert and token, [E,N,c], is computed for the S chosen rows instead,
// sorted by expert: a "slot" form [S,c] (MegaBlocks, Gale et al. 2022, without
// its padding):
//   route(idx) -> offsets, perm, inv      slots of expert e are consecutive
//   x[1,N,c]                -> gather(x, token of the slot)
//   matmul(h, W[E,..])      -> grouped_matmul(h, W, offsets)
//   h + b[E,1,c]            -> the same with a bias
//   elementwise, row ops    -> the same on [S,c]
//   out[n] = sum_j w[n,j] * Y[inv[n*k+j]]
// Nothing else may read the cone, or the dense form would have to stay.
//
// With one token, as in decoding, shapes do not tell what varies: [E,1,c] is
// taken to vary with both where it is computed, and [1,1,c] with the token.
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include "ir/builder.h"
#include "ir/match.h"
#include "ir/op_def.h"
#include "ir/text.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

// Row ops on the last axis, which do not look across tokens.
bool is_row_op(const Node& n) {
  switch (n.op()) {
    case Op::RmsNorm:
    case Op::LayerNorm: return true;
    case Op::Softmax: return n.i("axis") == -1;
    default: return false;
  }
}

// put_along(idx, w) as [E,N,1], in the two ways to write it.
Node* gate_of(Value v) {
  if (v.node->op() == Op::Reshape) v = v.node->operand(0);
  if (v.node->op() == Op::Transpose) v = v.node->operand(0);
  if (v.node->op() == Op::Reshape) v = v.node->operand(0);
  return v.node->op() == Op::PutAlong ? v.node : nullptr;
}

// bool[N,k] values outside which `w` is zero, or none.
Value keep_of(Value w, const Dims& shape) {
  auto is_mask = [&](Value v) {
    return v.type().dtype == DType::Bool && v.type().dims == shape;
  };
  Node& n = *w.node;
  switch (n.op()) {
    case Op::Cast:
      if (is_mask(n.operand(0))) return n.operand(0);
      return is_float(n.operand(0).type().dtype) ? keep_of(n.operand(0), shape)
                                                 : Value();
    case Op::Mul:
      for (Value v : n.operands())
        if (Value keep = keep_of(v, shape)) return keep;
      return {};
    case Op::Div: return keep_of(n.operand(0), shape);
    case Op::Select: {
      double zero = 1;
      if (is_mask(n.operand(0)) && m::is_splat(n.operand(2), &zero) &&
          zero == 0)
        return n.operand(0);
      return {};
    }
    default: return {};
  }
}

class Routed {
 public:
  explicit Routed(Node& sum) : graph_(sum.graph()), sum_(sum) {}

  bool match(std::string* why) {
    why_ = why;
    Value product = sum_.operand(0);
    const Dims& d = product.type().dims;
    if (sum_.ints("axes") != std::vector<i64>{0} || d.size() != 3)
      return fail("is not a sum of [experts,tokens,width] over experts");
    experts_ = d[0];
    tokens_ = d[1];
    if (product.node->op() != Op::Mul)
      return fail("does not sum products with a gate");
    for (int i = 0; i < 2; ++i) {
      Value gate = product.node->operand(i);
      Node* put = gate_of(gate);
      if (!put || gate.type().dims != Dims{experts_, tokens_, 1} ||
          put->type().dims != Dims{tokens_, experts_})
        continue;
      index_ = put->operand(0);
      weights_ = put->operand(1);
      result_ = product.node->operand(1 - i);
    }
    if (!index_)
      return fail(
          "has no gate that is put_along of chosen experts, [E,N,1] (a gate "
          "that is not top-k needs every expert)");
    if (experts_ == 1) return fail("has one expert");
    if (result_.type().dims[0] != experts_ || result_.type().dims[1] != tokens_)
      return fail("weights a value that is the same for all experts");
    cone_.insert(product.node);
    cone_.insert(&sum_);
    return collect(result_) && closed();
  }

  void apply() {
    Builder b(graph_, &sum_);
    b.where = result_.node->where;
    const Dims& choice = index_.type().dims;
    Values routed{index_};
    if (Value keep = keep_of(weights_, choice)) routed.push_back(keep);
    Node* route = b.node(Op::Route, routed, {{"experts", experts_}});
    route->names = {"offsets", "perm", "inv"};
    offsets_ = route->result(0);
    perm_ = route->result(1);
    token_ = token_of_slot(b, route->result(1), choice[1]);
    if (choice[1] > 1) token_.node->names = {"token"};

    Value y = slots_of(b, result_);
    Value inverse = b.reshape(route->result(2), choice);
    Value chosen = b.op(Op::Gather, {y, inverse});
    Value w = b.reshape(weights_, {tokens_, choice[1], 1});
    Value out = b.sum(b.mul(chosen, b.cast(w, y.type().dtype)), {1});
    out = b.reshape(out, sum_.type().dims);
    take_names(sum_, *out.node);
    graph_.replace_all_uses(sum_.result(), out);
    erase_dead(&sum_);
  }

 private:
  bool fail(std::string_view reason) {
    if (why_) *why_ = reason;
    return false;
  }
  bool fail_at(Value v, std::string_view reason) {
    return fail(fmt::format("`{}` {}", print(*v.node), reason));
  }

  // Varies with expert and token: [E,N,c].
  bool is_wide(Value v) const {
    const Dims& d = v.type().dims;
    return d.size() == 3 && d[0] == experts_ && d[1] == tokens_;
  }
  // Varies with the token alone: [1,N,c] or [N,c].
  bool is_token(Value v) const {
    const Dims& d = v.type().dims;
    return (d.size() == 3 && d[0] == 1 && d[1] == tokens_) ||
           (d.size() == 2 && d[0] == tokens_);
  }
  // Varies with the expert alone: [E,1,c].
  bool is_expert(Value v) const {
    const Dims& d = v.type().dims;
    return d.size() == 3 && d[0] == experts_ && d[1] == 1 &&
           (tokens_ > 1 || !has_slot_form(*v.node));
  }
  // The same for all: [c], [1,c], [1,1,c], or a number.
  bool is_shared(Value v) const {
    const Dims& d = v.type().dims;
    if (tokens_ == 1 && is_token(v)) return false;
    for (size_t i = 0; i + 1 < d.size(); ++i)
      if (d[i] != 1) return false;
    return true;
  }

  bool has_slot_form(const Node& n) const {
    return n.op() == Op::Matmul || has_trait(n, kElementwise) || is_row_op(n) ||
           n.op() == Op::Broadcast || n.op() == Op::Slice ||
           n.op() == Op::Concat;
  }

  // Adds the nodes behind `v` to the cone; false if one has no slot form.
  bool collect(Value start) {
    std::vector<Value> stack{start};
    while (!stack.empty()) {
      Value v = stack.back();
      stack.pop_back();
      if (is_shared(v) || is_token(v) || is_expert(v)) continue;
      if (!is_wide(v))
        return fail_at(v, "has a shape that is not one of experts and tokens");
      if (!cone_.insert(v.node).second) continue;
      Node& n = *v.node;
      if (n.op() == Op::Matmul) {
        Value w = n.operand(1);
        if (n.b("transpose_a") ||
            !(is_wide(n.operand(0)) || is_token(n.operand(0))))
          return fail_at(v, "does not multiply rows of tokens");
        bool stacked = w.type().rank() == 3 && w.type().dims[0] == experts_;
        if (!stacked) return fail_at(v, "has no weight per expert");
        stack.push_back(n.operand(0));
      } else if (has_trait(n, kElementwise) || is_row_op(n) ||
                 n.op() == Op::Broadcast) {
        for (Value o : n.operands()) stack.push_back(o);
      } else if (n.op() == Op::Slice && whole_rows(n)) {
        stack.push_back(n.operand(0));
      } else if (n.op() == Op::Concat && n.i("axis") == 2) {
        for (Value o : n.operands()) stack.push_back(o);
      } else {
        return fail_at(v, "has no form for chosen tokens only");
      }
    }
    return true;
  }

  bool whole_rows(const Node& n) const {
    const auto &start = n.ints("start"), &limit = n.ints("limit");
    return start[0] == 0 && start[1] == 0 && limit[0] == experts_ &&
           limit[1] == tokens_;
  }

  bool closed() {
    for (Node* n : graph_) {
      if (!cone_.contains(n) || n == &sum_) continue;
      for (const Use& u : n->users())
        if (!cone_.contains(u.node))
          return fail_at(n->result(), "is also read outside the layer");
    }
    return true;
  }

  // perm / k, -1 where the slot is empty: division rounds towards zero.
  static Value token_of_slot(Builder& b, Value perm, i64 k) {
    if (k == 1) return perm;
    auto t = perm.type().dtype;
    Value up = b.op(Op::Div, {b.add(perm, double(k)), b.scalar(double(k), t)});
    return b.sub(up, b.scalar(1, t));
  }

  // The rows of `v` that slots need, [S,c]; something that broadcasts to that
  // where `v` is the same for all.
  Value slots_of(Builder& b, Value v) {
    if (auto at = done_.find(v); at != done_.end()) return at->second;
    Value s = make_slots(b, v);
    done_[v] = s;
    return s;
  }

  Value make_slots(Builder& b, Value v) {
    const Dims& d = v.type().dims;
    if (is_shared(v)) return d.size() <= 1 ? v : b.reshape(v, {d.back()});
    if (is_token(v)) {
      Value rows = b.reshape(v, {tokens_, d.back()});
      return b.op(Op::Gather, {rows, token_});
    }
    if (is_expert(v)) {
      Value rows = b.reshape(v, {experts_, d.back()});
      return b.op(Op::Gather, {rows, expert_of_slot(b)});
    }
    Node& n = *v.node;
    b.where = n.where;
    Value s;
    if (n.op() == Op::Matmul) {
      s = product(b, n, {});
    } else if (Node* with_bias = biased_product(n)) {
      Value bias = n.operand(n.operand(0).node == with_bias ? 1 : 0);
      s = product(b, *with_bias,
                  b.reshape(bias, {experts_, bias.type().dims.back()}));
    } else if (n.op() == Op::Broadcast) {
      s = slots_of(b, n.operand(0));
      s = b.broadcast(s, {perm_.type().dims[0], d.back()});
    } else {
      s = same_op(b, n, d.back());
    }
    take_names(n, *s.node);
    return s;
  }

  // add(matmul, bias[E,1,c]) whose product nothing else reads.
  Node* biased_product(Node& n) const {
    if (n.op() != Op::Add) return nullptr;
    for (int i = 0; i < 2; ++i) {
      Node* p = n.operand(i).node;
      if (p->op() == Op::Matmul && cone_.contains(p) &&
          p->users().size() == 1 && p->f("scale") == 1 &&
          is_expert(n.operand(1 - i)) &&
          n.operand(1 - i).type().dims[2] == n.type().dims[2])
        return p;
    }
    return nullptr;
  }

  Value product(Builder& b, Node& n, Value bias) {
    Values operands{slots_of(b, n.operand(0)), n.operand(1), offsets_};
    b.where = n.where;
    if (bias) operands.push_back(bias);
    Value y = b.node(Op::GroupedMatmul, operands,
                     {{"transpose_b", n.b("transpose_b")}})
                  ->result();
    return n.f("scale") == 1 ? y : b.mul(y, n.f("scale"));
  }

  Value same_op(Builder& b, Node& n, i64 width) {
    Values operands;
    for (Value o : n.operands()) operands.push_back(slots_of(b, o));
    b.where = n.where;
    AttrList attrs = n.attr_list();
    for (auto& [name, value] : attrs) {
      if (n.op() == Op::Concat && name == "axis") value = i64(1);
      if (n.op() != Op::Slice) continue;
      auto& list = std::get<std::vector<i64>>(value);
      if (list.empty()) continue;
      list.erase(list.begin());
      if (name == "limit") list[0] = perm_.type().dims[0];
    }
    Value s = b.node(n.op(), operands, attrs)->result();
    return s.type().rank() == 2 ? s
                                : b.broadcast(s, {perm_.type().dims[0], width});
  }

  // The expert of each slot, -1 where it is empty: an empty slot reads 0 of
  // idx + 1.
  Value expert_of_slot(Builder& b) {
    if (expert_) return expert_;
    Value flat = b.reshape(index_, {index_.type().numel()});
    Value up = b.op(Op::Gather, {b.add(flat, 1), perm_});
    return expert_ = b.sub(up, b.scalar(1, up.type().dtype));
  }

  Graph& graph_;
  Node& sum_;
  std::string* why_ = nullptr;
  i64 experts_ = 0, tokens_ = 0;
  Value index_, weights_, result_;
  absl::flat_hash_set<Node*> cone_;
  Value offsets_, perm_, token_, expert_;
  absl::flat_hash_map<Value, Value> done_;
};

}  // namespace

bool fuse_moe(Graph& g, PassContext& ctx) {
  bool changed = false;
  for (Node* n : g) {
    if (n->op() != Op::Sum || n->operand(0).type().rank() != 3 ||
        n->ints("axes") != std::vector<i64>{0})
      continue;
    std::string why;
    Routed layer(*n);
    if (layer.match(&why)) {
      layer.apply();
      changed = true;
    } else {
      ctx.explain("fuse-moe", *n, why);
    }
  }
  return changed;
}

}  // namespace moec
