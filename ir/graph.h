// A function as a graph in SSA form. Nodes stand in one list, operands before
// users; each knows its operands and its users, so rewriting is in place.
#pragma once
#include <absl/types/span.h>

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ir/attr.h"
#include "ir/type.h"

namespace moec {

enum class Op : uint8_t {
#define MOEC_OP(E, text) E,
#include "ir/opcodes.def"
#undef MOEC_OP
};
inline constexpr int kNumOps = 0
#define MOEC_OP(E, text) +1
#include "ir/opcodes.def"
#undef MOEC_OP
    ;

struct OpDef;
class Node;
class Graph;

// One result of a node. A default Value is "none".
struct Value {
  Node* node = nullptr;
  int index = 0;

  const Type& type() const;
  explicit operator bool() const { return node != nullptr; }
  bool operator==(const Value&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const Value& v) {
    return H::combine(std::move(h), v.node, v.index);
  }
};
using Values = absl::InlinedVector<Value, 4>;

struct Use {
  Node* node;
  int operand;
  bool operator==(const Use&) const = default;
};

// Where a node comes from: module path and line of the model's source.
struct Provenance {
  std::string scope;      // "layer0/moe/router"; empty at the top
  const char* file = "";  // a string with static lifetime
  int line = 0;
};

class Node {
 public:
  Op op() const { return op_; }
  const OpDef& def() const;
  Graph& graph() const { return *graph_; }

  absl::Span<const Value> operands() const { return operands_; }
  Value operand(int i) const { return operands_[i]; }
  int num_operands() const { return int(operands_.size()); }
  void set_operand(int i, Value);

  absl::Span<const Type> types() const { return types_; }
  const Type& type(int i = 0) const { return types_[i]; }
  int num_results() const { return int(types_.size()); }
  Value result(int i = 0) { return {this, i}; }

  // Uses of any result, in no particular order; one entry per operand slot.
  absl::Span<const Use> users() const { return users_; }
  int num_uses(int result) const;

  // By name, as listed in the op's definition; a wrong name or kind is an
  // InternalError.
  bool b(std::string_view name) const;
  i64 i(std::string_view name) const;
  double f(std::string_view name) const;
  const std::string& s(std::string_view name) const;
  const std::vector<i64>& ints(std::string_view name) const;
  DType dtype(std::string_view name) const;
  absl::Span<const AttrValue> attrs() const { return attrs_; }
  AttrList attr_list() const;  // all of them, to make a similar node
  void set_attr(std::string_view name, AttrValue);

  // The body of a fusion: its arguments stand for the operands.
  Graph* body() const { return body_.get(); }

  Node* next() const { return next_; }
  Node* prev() const { return prev_; }

  Provenance where;
  std::vector<std::string> names;  // per result; empty: printed as a number

 private:
  friend class Graph;
  const AttrValue& attr(std::string_view name, AttrKind) const;

  Op op_;
  Graph* graph_ = nullptr;
  Node *prev_ = nullptr, *next_ = nullptr;
  absl::InlinedVector<Value, 3> operands_;
  absl::InlinedVector<Type, 1> types_;
  std::vector<AttrValue> attrs_;
  std::vector<Use> users_;
  std::unique_ptr<Graph> body_;
};

class Graph {
 public:
  explicit Graph(std::string name) : name_(std::move(name)) {}
  Graph(const Graph&) = delete;

  const std::string& name() const { return name_; }
  void set_name(std::string n) { name_ = std::move(n); }
  std::unique_ptr<Graph> clone() const;

  // Arguments, in order. Names are unique.
  Value add_arg(std::string name, Type);
  absl::Span<Node* const> args() const { return args_; }
  const std::string& arg_name(int i) const { return args_[i]->names[0]; }

  // The results. `names` is empty or one per value; an output that has an
  // argument's name replaces that argument: its buffer is donated.
  void set_outputs(absl::Span<const Value> values,
                   std::vector<std::string> names = {});
  Node* return_node() const { return return_; }
  absl::Span<const Value> outputs() const;
  std::vector<std::string> output_names;

  // Makes a node before `before` (nullptr: before the return, else at the
  // end), infers its types and checks attributes. Throws UserError with op,
  // shapes and provenance.
  Node* create(Op, absl::Span<const Value> operands, const AttrList& = {},
               Node* before = nullptr, Provenance = {},
               std::unique_ptr<Graph> body = nullptr);

  void replace_all_uses(Value from, Value to);
  // The node must have no users.
  void erase(Node*);
  void move_before(Node*, Node* before);

  Node* first() const { return first_; }
  Node* last() const { return last_; }
  int size() const { return size_; }

  // for (Node* n : graph): in order; the current node may be erased.
  struct iterator {
    Node *at, *following;
    Node* operator*() const { return at; }
    iterator& operator++() {
      at = following;
      following = at ? at->next() : nullptr;
      return *this;
    }
    bool operator!=(const iterator& o) const { return at != o.at; }
  };
  iterator begin() const { return {first_, first_ ? first_->next() : nullptr}; }
  iterator end() const { return {nullptr, nullptr}; }

 private:
  friend class Node;
  void link(Node*, Node* before);
  void unlink(Node*);
  void remove_use(Value, Use);

  std::string name_;
  std::deque<std::unique_ptr<Node>> arena_;
  std::vector<Node*> args_;
  Node *first_ = nullptr, *last_ = nullptr, *return_ = nullptr;
  int size_ = 0;
};

struct Module {
  std::vector<std::unique_ptr<Graph>> functions;
  Graph* find(std::string_view name) const;  // nullptr if there is none
  Graph& add(std::string name);
};

inline const Type& Value::type() const { return node->type(index); }

}  // namespace moec
