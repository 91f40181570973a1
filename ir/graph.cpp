#include "ir/graph.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>

#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

std::string describe_place(const Provenance& w) {
  std::string s;
  if (!w.scope.empty()) s += "\n  at " + w.scope;
  if (w.line > 0)
    s += fmt::format("{}({}:{})", s.empty() ? "\n  at " : " ", w.file, w.line);
  return s;
}

std::string attr_names(const OpDef& d) {
  std::string s;
  for (const AttrDef& a : d.attrs) {
    if (!s.empty()) s += ", ";
    s += a.name;
  }
  return s.empty() ? "none" : s;
}

// Sizes that no machine has come from bad text or a typo; they must not
// overflow an i64 further on.
void check_size(const OpDef& d, const Type& t) {
  constexpr i64 kMaxElements = i64(1) << 44;
  i64 n = 1;
  for (i64 dim : t.dims) {
    if (dim < 0)
      user_error("{}: negative dimension in {}", d.name, to_string(t));
    if (dim > 0 && n > kMaxElements / dim)
      user_error("{}: {} is too large", d.name, to_string(t));
    n *= dim;
  }
}

// An int given where a float is due is a float, and [] is a list of anything.
AttrValue coerce(const OpDef& d, const AttrDef& a, AttrValue v) {
  if (a.kind == AttrKind::Float) {
    if (auto* i = std::get_if<i64>(&v)) v = double(*i);
    if (auto* f = std::get_if<double>(&v)) v = canonical_float(*f);
  }
  if (AttrKind(v.index()) != a.kind)
    user_error("{}: attribute {} has the wrong kind of value: {}", d.name,
               a.name, to_string(v));
  return v;
}

std::vector<AttrValue> complete_attrs(const OpDef& d, const AttrList& given) {
  std::vector<AttrValue> values(d.attrs.size());
  std::vector<bool> set(d.attrs.size());
  for (const auto& [name, value] : given) {
    auto it = std::find_if(d.attrs.begin(), d.attrs.end(),
                           [&, n = name](auto& a) { return a.name == n; });
    if (it == d.attrs.end())
      user_error("{}: there is no attribute '{}' (known: {})", d.name, name,
                 attr_names(d));
    auto i = size_t(it - d.attrs.begin());
    if (set[i]) user_error("{}: attribute {} is given twice", d.name, name);
    values[i] = coerce(d, *it, value);
    set[i] = true;
  }
  for (size_t i = 0; i < set.size(); ++i) {
    if (set[i]) continue;
    if (d.attrs[i].required)
      user_error("{}: attribute {} is missing", d.name, d.attrs[i].name);
    values[i] = d.attrs[i].value;
  }
  return values;
}

}  // namespace

const OpDef& Node::def() const { return moec::def(op_); }

int Node::num_uses(int result) const {
  int n = 0;
  for (const Use& u : users_) n += u.node->operand(u.operand).index == result;
  return n;
}

void Node::set_operand(int i, Value v) {
  if (operands_[i] == v) return;
  graph_->remove_use(operands_[i], {this, i});
  operands_[i] = v;
  v.node->users_.push_back({this, i});
}

const AttrValue& Node::attr(std::string_view name, AttrKind kind) const {
  const OpDef& d = def();
  for (size_t i = 0; i < d.attrs.size(); ++i)
    if (d.attrs[i].name == name) {
      MOEC_CHECK(d.attrs[i].kind == kind, "{}.{}", d.name, name);
      return attrs_[i];
    }
  MOEC_CHECK(false, "{} has no attribute {}", d.name, name);
  return attrs_[0];
}

bool Node::b(std::string_view n) const {
  return std::get<bool>(attr(n, AttrKind::Bool));
}
i64 Node::i(std::string_view n) const {
  return std::get<i64>(attr(n, AttrKind::Int));
}
double Node::f(std::string_view n) const {
  return std::get<double>(attr(n, AttrKind::Float));
}
const std::string& Node::s(std::string_view n) const {
  return std::get<std::string>(attr(n, AttrKind::String));
}
const std::vector<i64>& Node::ints(std::string_view n) const {
  return std::get<std::vector<i64>>(attr(n, AttrKind::Ints));
}
DType Node::dtype(std::string_view n) const {
  return std::get<DType>(attr(n, AttrKind::DType));
}

AttrList Node::attr_list() const {
  AttrList list;
  for (size_t i = 0; i < attrs_.size(); ++i)
    list.emplace_back(def().attrs[i].name, attrs_[i]);
  return list;
}

void Node::set_attr(std::string_view name, AttrValue v) {
  const OpDef& d = def();
  for (size_t i = 0; i < d.attrs.size(); ++i)
    if (d.attrs[i].name == name) {
      attrs_[i] = coerce(d, d.attrs[i], std::move(v));
      return;
    }
  MOEC_CHECK(false, "{} has no attribute {}", d.name, name);
}

void Graph::link(Node* n, Node* before) {
  n->next_ = before;
  n->prev_ = before ? before->prev_ : last_;
  (n->prev_ ? n->prev_->next_ : first_) = n;
  (before ? before->prev_ : last_) = n;
  ++size_;
}

void Graph::unlink(Node* n) {
  (n->prev_ ? n->prev_->next_ : first_) = n->next_;
  (n->next_ ? n->next_->prev_ : last_) = n->prev_;
  n->prev_ = n->next_ = nullptr;
  --size_;
}

void Graph::remove_use(Value v, Use use) {
  auto& users = v.node->users_;
  auto it = std::find(users.begin(), users.end(), use);
  MOEC_CHECK(it != users.end());
  *it = users.back();
  users.pop_back();
}

Value Graph::add_arg(std::string name, Type type) {
  auto node = std::make_unique<Node>();
  node->op_ = Op::Arg;
  node->graph_ = this;
  node->types_ = {std::move(type)};
  node->names = {std::move(name)};
  Node* n = node.get();
  arena_.push_back(std::move(node));
  link(n, args_.empty() ? first_ : args_.back()->next());
  args_.push_back(n);
  return n->result();
}

Node* Graph::create(Op op, absl::Span<const Value> operands,
                    const AttrList& attrs, Node* before, Provenance where,
                    std::unique_ptr<Graph> body) {
  const OpDef& d = moec::def(op);
  auto node = std::make_unique<Node>();
  Node* n = node.get();
  n->op_ = op;
  n->graph_ = this;
  n->where = std::move(where);
  n->body_ = std::move(body);
  try {
    auto count = int(operands.size());
    if (count < d.min_inputs || (d.max_inputs >= 0 && count > d.max_inputs))
      user_error("{}: takes {}{} operands, not {}", d.name, d.min_inputs,
                 d.max_inputs < 0 ? " or more"
                 : d.max_inputs == d.min_inputs
                     ? ""
                     : fmt::format(" to {}", d.max_inputs),
                 count);
    n->attrs_ = complete_attrs(d, attrs);
    absl::InlinedVector<Type, 4> in;
    for (Value v : operands) {
      MOEC_CHECK(v && v.node->graph_ == this, "operand of another graph");
      in.push_back(v.type());
    }
    n->types_ = d.infer({in, *n});
    for (const Type& t : n->types_) check_size(d, t);
  } catch (const UserError& e) {
    throw UserError(e.what() + describe_place(n->where));
  }
  n->operands_.assign(operands.begin(), operands.end());
  for (int i = 0; i < n->num_operands(); ++i)
    n->operands_[i].node->users_.push_back({n, i});
  arena_.push_back(std::move(node));
  link(n, before ? before : return_);
  return n;
}

void Graph::set_outputs(absl::Span<const Value> values,
                        std::vector<std::string> names) {
  MOEC_CHECK(names.empty() || names.size() == values.size());
  std::vector<Value> keep(values.begin(), values.end());
  if (return_) {
    Node* old = return_;
    return_ = nullptr;
    erase(old);
  }
  return_ = create(Op::Return, keep);
  output_names = std::move(names);
}

absl::Span<const Value> Graph::outputs() const {
  return return_ ? return_->operands() : absl::Span<const Value>();
}

void Graph::replace_all_uses(Value from, Value to) {
  if (from == to) return;
  MOEC_CHECK(from.type() == to.type(), "{} and {}", to_string(from.type()),
             to_string(to.type()));
  auto users = from.node->users_;
  for (const Use& u : users)
    if (u.node->operand(u.operand) == from) u.node->set_operand(u.operand, to);
}

void Graph::erase(Node* n) {
  MOEC_CHECK(n->graph_ == this, "{} is erased twice", op_name(n->op_));
  MOEC_CHECK(n->users_.empty(), "{} still has users", op_name(n->op_));
  for (int i = 0; i < n->num_operands(); ++i)
    remove_use(n->operands_[i], {n, i});
  n->operands_.clear();
  if (n->op_ == Op::Arg) args_.erase(std::find(args_.begin(), args_.end(), n));
  unlink(n);
  n->graph_ = nullptr;
}

void Graph::move_before(Node* n, Node* before) {
  if (n == before) return;
  unlink(n);
  link(n, before);
}

std::unique_ptr<Graph> Graph::clone() const {
  auto g = std::make_unique<Graph>(name_);
  absl::flat_hash_map<const Node*, Node*> map;
  for (Node* a : args_) {
    map[a] = g->add_arg(a->names[0], a->type()).node;
    map[a]->where = a->where;
  }
  for (Node* n : *this) {
    if (n->op() == Op::Arg) continue;
    std::vector<Value> operands;
    for (Value v : n->operands()) operands.push_back({map.at(v.node), v.index});
    if (n->op() == Op::Return) {
      g->set_outputs(operands, output_names);
      continue;
    }
    Node* c = g->create(n->op(), operands, n->attr_list(), nullptr, n->where,
                        n->body_ ? n->body_->clone() : nullptr);
    c->names = n->names;
    map[n] = c;
  }
  return g;
}

Graph* Module::find(std::string_view name) const {
  for (const auto& f : functions)
    if (f->name() == name) return f.get();
  return nullptr;
}

Graph& Module::add(std::string name) {
  functions.push_back(std::make_unique<Graph>(std::move(name)));
  return *functions.back();
}

}  // namespace moec
