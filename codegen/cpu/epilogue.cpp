#include "codegen/cpu/epilogue.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>

#include "codegen/cpu/scalar_emit.h"
#include "ir/op_def.h"
#include "ir/text.h"
#include "support/error.h"

namespace moec {
namespace {

bool is_product(Op op) {
  return op == Op::Matmul || op == Op::MoeFfn || op == Op::MoeFfnGrad;
}

V emit_node(Emit& e, const Node& n, const Vs& in) {
  DType from = n.operand(n.op() == Op::Select ? 1 : 0).type().dtype;
  std::string attr = n.op() == Op::Compare ? n.s("direction") : "";
  return emit_scalar(e, n.op(), attr, from, n.type().dtype, in);
}

}  // namespace

int ProductFusion::result_of(int r) const {
  auto outputs = body->outputs();
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i].node == product && outputs[i].index == r) return int(i);
  return -1;
}

Epilogue ProductFusion::epilogue() const {
  Epilogue out;
  out.key = structural_key(*body);
  for (Node* n : *body)
    if (is_scalar_op(n->op())) out.cost += scalar_cost(n->op());
  out.emit = [*this](Emit& e, V value, std::span<V const> read) {
    absl::flat_hash_map<Value, V> values;
    auto args = body->args();
    for (size_t i = 0; i < extras.size(); ++i)
      values[args[size_t(extras[i])]->result()] = read[i];
    for (Node* n : *body) {
      if (n->op() == Op::Arg || n->op() == Op::Return) continue;
      V v = value;
      if (n->op() == Op::Constant) {
        v = emit_constant(e, n->type().dtype, n->f("value"));
      } else if (n != product) {
        Vs in;
        for (Value o : n->operands()) in.push_back(values.at(o));
        v = emit_node(e, *n, in);
      }
      values[n->result()] = v;
    }
    Vs written;
    for (int o : outputs) written.push_back(values.at(body->outputs()[o]));
    return written;
  };
  return out;
}

ProductFusion take_apart(const Node& fusion) {
  ProductFusion f;
  f.body = fusion.body()->clone();
  for (Node* n : *f.body)
    if (is_product(n->op())) f.product = n;
  MOEC_CHECK(f.product, "a fusion of kind {} without a product",
             fusion.s("kind"));
  auto args = f.body->args();
  auto number = [&](const Node* arg) {
    return int(std::find(args.begin(), args.end(), arg) - args.begin());
  };
  for (Value v : f.product->operands()) f.operands.push_back(number(v.node));
  for (Node* n : *f.body) {
    if (n == f.product || n->op() == Op::Return) continue;
    for (Value v : n->operands())
      if (int at = number(v.node);
          at < int(args.size()) &&
          std::find(f.extras.begin(), f.extras.end(), at) == f.extras.end())
        f.extras.push_back(at);
  }
  auto outputs = f.body->outputs();
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i].node != f.product || outputs[i].index == 0)
      f.outputs.push_back(int(i));
  return f;
}

MatmulOperand beside_product(int buffer, const Type& t, i64 cols) {
  MatmulOperand o{.buffer = buffer, .dtype = t.dtype};
  if (t.numel() == 1)
    o.row_stride = o.col_stride = 0;
  else if (t.rank() == 1)
    o.row_stride = 0, o.col_stride = 1;
  else if (t.dims.back() == 1 && cols > 1)
    o.row_stride = 1, o.col_stride = 0;
  else
    o.row_stride = cols, o.col_stride = 1;
  return o;
}

}  // namespace moec
