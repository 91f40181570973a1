// Elementwise ops after a product into its epilogue: they run on the tile
// while it is in registers, so that the product itself need not be stored.
//
// A region starts at a product and takes in elementwise ops that read it (and
// reshapes that keep its columns), with what only they read. Their other
// operands must stand before the product, or each product would wait for the
// next; so of a sum of products the last one adds the others. The region
// becomes a fusion whose body works on the shape of the product: kind "matmul"
// after a matmul, kind "experts" after moe_ffn, where the ops join the combine.
#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

#include <algorithm>

#include "ir/builder.h"
#include "ir/op_def.h"
#include "passes/few_rows.h"
#include "passes/pass.h"

namespace moec {
namespace {

constexpr std::string_view kName = "fuse-epilogue";
constexpr int kMaxNodes = 32, kMaxOperands = 8;

bool is_matmul(const Node& n) { return n.op() == Op::Matmul; }

// Every row of the result meets the same matrix, so that the epilogue sees one
// matrix of rows by columns.
bool is_one_matrix(const Node& n) {
  const Dims& b = n.operand(1).type().dims;
  bool one_b =
      std::all_of(b.begin(), b.end() - 2, [](i64 d) { return d == 1; });
  return n.type().rank() == 2 || (!n.b("transpose_a") && one_b);
}

bool is_product(const Node& n) {
  return is_matmul(n) || n.op() == Op::MoeFfn || n.op() == Op::MoeFfnGrad;
}

// What fuse-elementwise takes in, so that a value that only such nodes read
// may never be stored.
bool is_groupable(const Node& n) {
  if (has_trait(n, kElementwise)) return true;
  switch (n.op()) {
    case Op::Softmax:
    case Op::SoftmaxGrad:
    case Op::LogSumExp:
    case Op::LayerNorm:
    case Op::RmsNorm:
    case Op::LayerNormGrad:
    case Op::RmsNormGrad:
    case Op::Sum:
    case Op::Mean:
    case Op::Dropout: return true;
    case Op::Reshape:
      return std::all_of(n.users().begin(), n.users().end(),
                         [](const Use& u) { return is_groupable(*u.node); });
    default: return false;
  }
}

class Region {
 public:
  using Positions = absl::flat_hash_map<const Node*, int>;

  Region(Node* product, const Positions& positions)
      : product_(product), positions_(positions) {
    const Dims& d = product->type().dims;
    cols_ = d.back();
    rows_ = product->type().numel() / std::max<i64>(cols_, 1);
    members_.push_back(product);
    in_.insert(product);
  }

  // Takes in what it can; `why` says it for the last node that stays outside.
  bool grow(std::string* why) {
    find_readers();
    std::vector<size_t> sizes;  // members before each step
    for (size_t at = 0; at < members_.size(); ++at) {
      // in the order of the list, whatever the order of uses
      std::vector<Node*> readers;
      for (const Use& u : members_[at]->users())
        if (u.node->operand(u.operand).index == 0 || members_[at] != product_)
          readers.push_back(u.node);
      std::sort(readers.begin(), readers.end(), [&](Node* a, Node* b) {
        return positions_.at(a) < positions_.at(b);
      });
      for (Node* n : readers) {
        if (in_.contains(n)) continue;
        size_t before = members_.size();
        if (take(n, why)) sizes.push_back(before);
      }
    }
    while (!sizes.empty() && !pays()) {
      *why = "more values would be stored than before";
      truncate(sizes.back());
      sizes.pop_back();
    }
    return std::any_of(members_.begin() + 1, members_.end(),
                       [](Node* n) { return n->op() != Op::Reshape; });
  }

  // Puts the fusion in the product's place.
  Node* build(Graph& g) {
    std::sort(members_.begin() + 1, members_.end(), [&](Node* a, Node* b) {
      return positions_.at(a) < positions_.at(b);
    });
    auto body = std::make_unique<Graph>("body");
    Builder inner(*body), outer(g, product_);
    absl::flat_hash_map<Value, Value> inside;
    Values operands;
    absl::flat_hash_set<std::string> names;
    auto add_operand = [&](Value v, Value as) {
      std::string name;
      if (!v.node->names.empty()) name = v.node->names[v.index];
      if (name.empty() || !names.insert(name).second) {
        name = fmt::format("p{}", operands.size());
        names.insert(name);
      }
      operands.push_back(as);
      return body->add_arg(name, as.type());
    };
    for (Value v : product_->operands())
      if (!inside.contains(v)) inside[v] = add_operand(v, v);
    Node* p = nullptr;
    absl::flat_hash_map<Value, Value> elementwise;  // by outer value
    for (Node* n : members_) {
      if (n == product_) continue;
      for (Value v : n->operands()) {
        if (in_.contains(v.node) || elementwise.contains(v)) continue;
        if (v.node->op() == Op::Constant) continue;
        elementwise[v] = add_operand(v, normalised(outer, v));
      }
    }
    {
      Values in;
      for (Value v : product_->operands()) in.push_back(inside.at(v));
      p = inner.node(product_->op(), in, product_->attr_list());
      p->names = product_->names;
    }
    for (int r = 0; r < product_->num_results(); ++r)
      elementwise[product_->result(r)] = p->result(r);
    for (Node* n : members_) {
      if (n == product_) continue;
      Values in;
      for (Value v : n->operands()) {
        if (v.node->op() == Op::Constant && !elementwise.contains(v))
          elementwise[v] =
              inner.constant({v.type().dtype, {}}, v.node->f("value"));
        in.push_back(elementwise.at(v));
      }
      if (n->op() == Op::Reshape) {
        elementwise[n->result()] = in[0];
        continue;
      }
      Node* c = inner.node(n->op(), in, n->attr_list());
      c->names = n->names;
      elementwise[n->result()] = c->result();
    }
    return finish(g, std::move(body), operands, elementwise);
  }

  const std::vector<Node*>& members() const { return members_; }

 private:
  bool is_space(const Type& t) const {
    return t.rank() > 0 && t.dims.back() == cols_ && t.numel() == rows_ * cols_;
  }

  // How an operand from outside lies beside the product: element by element,
  // or one for each column, each row, or all.
  bool is_readable(const Type& t) const {
    if (is_space(t) || t.numel() == 1 || is_column(t)) return true;
    return t.rank() > 0 && t.dims.back() == 1 && t.numel() == rows_;
  }
  bool is_column(const Type& t) const {
    return t.rank() > 0 && t.dims.back() == cols_ && t.numel() == cols_;
  }

  // The operand in the body's shapes.
  Value normalised(Builder& b, Value v) const {
    const Type& t = v.type();
    Dims d = product_->type().dims;
    if (is_space(t)) return b.reshape(v, d);
    if (t.numel() == 1) return b.reshape(v, {});
    if (is_column(t)) return b.reshape(v, {cols_});
    d.back() = 1;
    return b.reshape(v, d);
  }

  // All that could read the product within the region: what only they read is
  // taken in with the first of them.
  void find_readers() {
    std::vector<Node*> stack{product_};
    while (!stack.empty()) {
      Node* n = stack.back();
      stack.pop_back();
      for (const Use& u : n->users())
        if (can_hold(*u.node) && readers_.insert(u.node).second)
          stack.push_back(u.node);
    }
  }

  bool before_product(const Node* n) const {
    return n->op() == Op::Constant ||
           positions_.at(n) < positions_.at(product_);
  }

  bool can_hold(const Node& n) const {
    if (n.op() == Op::Reshape) return is_space(n.type());
    return has_trait(n, kElementwise) && is_space(n.type());
  }

  // Adds `n` and what only the region reads; nothing on failure.
  bool take(Node* n, std::string* why) {
    size_t before = members_.size();
    auto fail = [&](std::string reason) {
      truncate(before);
      *why = std::move(reason);
      return false;
    };
    if (!can_hold(*n))
      return fail(fmt::format("{} is not elementwise on the product's rows",
                              op_name(n->op())));
    add(n);
    for (size_t at = before; at < members_.size(); ++at)
      for (Value v : members_[at]->operands()) {
        Node* from = v.node;
        if (from == product_ && v.index != 0)
          return fail("it reads another result of the product");
        if (in_.contains(from) || before_product(from)) continue;
        bool ours = true;
        for (const Use& u : from->users())
          ours &= in_.contains(u.node) || readers_.contains(u.node);
        if (ours && can_hold(*from)) {
          add(from);
          continue;
        }
        return fail(fmt::format("operand %{} of {} is made after the product",
                                name_of(v), op_name(members_[at]->op())));
      }
    for (Value v : outside())
      if (!is_readable(v.type()))
        return fail(
            fmt::format("an operand {} is neither a value per element, "
                        "row or column of the product",
                        to_string(v.type())));
    if (int(members_.size()) > kMaxNodes ||
        int(outside().size()) > kMaxOperands)
      return fail("the epilogue would be too large");
    return true;
  }

  static std::string name_of(Value v) {
    if (v.node->names.empty() || v.node->names[v.index].empty())
      return std::string(op_name(v.node->op()));
    return v.node->names[v.index];
  }

  void add(Node* n) {
    members_.push_back(n);
    in_.insert(n);
  }
  void truncate(size_t size) {
    for (size_t i = size; i < members_.size(); ++i) in_.erase(members_[i]);
    members_.resize(size);
  }

  // Operands of the epilogue from outside, but for constants.
  absl::flat_hash_set<Value> outside() const {
    absl::flat_hash_set<Value> values;
    for (Node* n : members_)
      if (n != product_)
        for (Value v : n->operands())
          if (!in_.contains(v.node) && v.node->op() != Op::Constant)
            values.insert(v);
    return values;
  }

  // Whether `v` is read outside, and there by more than ops that could take
  // it in.
  struct Reading {
    bool outside = false, stored = false;
  };
  Reading reading(Value v) const {
    Reading r;
    for (const Use& u : v.node->users()) {
      if (u.node->operand(u.operand) != v || in_.contains(u.node)) continue;
      r.outside = true;
      r.stored |= !is_groupable(*u.node);
    }
    return r;
  }

  // The product was stored before. In its place one value may be that would
  // have stayed inside a later kernel; others must be stored anyway.
  bool pays() const {
    int added = reading(product_->result()).outside ? 1 : 0;
    for (Node* n : members_) {
      if (n == product_ || n->op() == Op::Reshape) continue;
      Reading r;
      for (Value v : names_of(n)) {
        Reading x = reading(v);
        r.outside |= x.outside, r.stored |= x.stored;
      }
      added += r.outside && !r.stored;
    }
    return added <= 1;
  }

  // The node's value and its reshapes in the region.
  Values names_of(Node* n) const {
    Values all{n->result()};
    for (size_t i = 0; i < all.size(); ++i)
      for (const Use& u : all[i].node->users())
        if (u.node->op() == Op::Reshape && in_.contains(u.node))
          all.push_back(u.node->result());
    return all;
  }

  Node* finish(Graph& g, std::unique_ptr<Graph> body, const Values& operands,
               const absl::flat_hash_map<Value, Value>& inside) {
    std::vector<Value> results, outer;
    std::vector<std::string> names;
    absl::flat_hash_map<Value, int> number;  // of a result, by inner value
    for (Node* n : members_)
      for (int r = 0; r < n->num_results(); ++r) {
        if (!reading(n->result(r)).outside) continue;
        outer.push_back(n->result(r));
        Value v = inside.at(n->result(r));
        if (!number.try_emplace(v, int(results.size())).second) continue;
        results.push_back(v);
        names.push_back(n->names.empty() ? "" : n->names[r]);
      }
    body->set_outputs(results);
    Node* fused = g.create(
        Op::Fusion, operands,
        {{"kind", std::string(is_matmul(*product_) ? "matmul" : "experts")}},
        product_, product_->where, std::move(body));
    fused->names = names;
    Builder b(g, product_);
    for (Value v : outer) {
      Value now = fused->result(number.at(inside.at(v)));
      now = b.reshape(now, v.type().dims);
      std::vector<Use> users(v.node->users().begin(), v.node->users().end());
      for (const Use& u : users)
        if (u.node->operand(u.operand) == v && !in_.contains(u.node))
          u.node->set_operand(u.operand, now);
    }
    for (size_t i = members_.size(); i-- > 0;) g.erase(members_[i]);
    return fused;
  }

  Node* product_;
  const Positions& positions_;
  i64 rows_ = 0, cols_ = 0;
  std::vector<Node*> members_;  // the product first
  absl::flat_hash_set<const Node*> in_, readers_;
};

}  // namespace

bool fuse_epilogue(Graph& g, PassContext& ctx) {
  Region::Positions positions;
  std::vector<Node*> products;
  for (Node* n : g) {
    positions[n] = int(positions.size());
    if (is_product(*n)) products.push_back(n);
  }
  bool changed = false;
  for (Node* p : products) {
    std::string why = "nothing reads it";
    if (is_matmul(*p) && !is_one_matrix(*p)) {
      ctx.explain(kName, *p, "it multiplies a matrix of its own per batch");
      continue;
    }
    if (has_few_rows(*p)) {
      ctx.explain(kName, *p, "its few rows have kernels without an epilogue");
      continue;
    }
    Region region(p, positions);
    if (!region.grow(&why)) {
      ctx.explain(kName, *p, why);
      continue;
    }
    int position = positions.at(p);
    Node* fused = region.build(g);
    // With the reshapes around it.
    for (Node* n = fused; n && !positions.contains(n); n = n->next())
      positions[n] = position;
    for (Value v : fused->operands())
      if (!positions.contains(v.node)) positions[v.node] = position;
    changed = true;
  }
  for (Node* n = g.last(); n;) {
    Node* before = n->prev();
    if (n->op() == Op::Constant && n->users().empty()) g.erase(n);
    n = before;
  }
  return changed;
}

}  // namespace moec
