#include "ir/interpreter.h"
#include "ir/match.h"
#include "ir/op_def.h"
#include "passes/pass.h"
#include "passes/rewrite.h"

namespace moec {
namespace {

// What an elementwise op makes of one number per operand, as the interpreter
// says.
double evaluate(const Node& n, const std::vector<double>& in) {
  Graph one("fold");
  Builder b(one);
  std::vector<Value> operands;
  std::vector<Tensor> tensors;
  std::vector<const Tensor*> pointers;
  for (size_t i = 0; i < in.size(); ++i) {
    Type t{n.operand(int(i)).type().dtype, {}};
    operands.push_back(one.add_arg(std::string(1, char('a' + i)), t));
    tensors.push_back({t, {in[i]}});
  }
  for (const Tensor& t : tensors) pointers.push_back(&t);
  Node* node = b.node(n.op(), operands, n.attr_list());
  return interpret_node(*node, pointers)[0].data[0];
}

Value fold_rule(Builder& b, Node& n) {
  if (n.num_operands() == 0) return {};
  std::vector<double> in(n.num_operands());
  for (int i = 0; i < n.num_operands(); ++i)
    if (!m::is_splat(n.operand(i), &in[i])) return {};
  if (has_trait(n, kElementwise)) return b.constant(n.type(), evaluate(n, in));
  switch (n.op()) {
    case Op::Sum: {
      auto count = double(n.operand(0).type().numel()) /
                   double(std::max<i64>(n.type().numel(), 1));
      return b.constant(n.type(), in[0] * count);
    }
    case Op::Mean:
    case Op::ReduceMax:
    case Op::ReduceMin: return b.constant(n.type(), in[0]);
    default: return {};
  }
}

}  // namespace

bool fold(Graph& g, PassContext&) {
  return rewrite(g, [](Builder& b, Node& n) { return fold_rule(b, n); });
}

}  // namespace moec
