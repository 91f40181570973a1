#include "ir/interpreter.h"

#include <absl/container/flat_hash_map.h>

#include <cmath>

#include "ir/builder.h"
#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

using Inputs = absl::Span<const Tensor* const>;

std::vector<Tensor> run(const Graph& g, Inputs args, Precision precision,
                        const Observer& observe = {}) {
  // A node's results live until its last user has run.
  struct Slot {
    std::vector<Tensor> results;
    int users_left = 0;
  };
  absl::flat_hash_map<const Node*, Slot> slots;
  absl::flat_hash_map<const Node*, const Tensor*> arguments;
  for (size_t i = 0; i < args.size(); ++i) arguments[g.args()[i]] = args[i];
  auto find = [&](Value v) -> const Tensor* {
    auto arg = arguments.find(v.node);
    if (arg != arguments.end()) return arg->second;
    return &slots.at(v.node).results[v.index];
  };
  std::vector<Tensor> out;
  std::vector<const Tensor*> in;
  for (const Node* n : g) {
    if (n->op() == Op::Arg) continue;
    in.clear();
    for (Value v : n->operands()) in.push_back(find(v));
    if (n->op() == Op::Return) {
      for (const Tensor* t : in) out.push_back(*t);
      break;
    }
    Slot made{interpret_node(*n, in, precision), int(n->users().size())};
    if (observe) observe(*n, made.results);
    for (Value v : n->operands()) {
      auto it = slots.find(v.node);
      if (it != slots.end() && --it->second.users_left == 0)
        it->second.results.clear();
    }
    if (made.users_left > 0) slots[n] = std::move(made);
  }
  return out;
}

// Runs the node's decomposition in a graph of its own.
std::vector<Tensor> run_decomposed(const Node& n, Inputs in,
                                   Precision precision) {
  MOEC_CHECK(n.def().decompose, "{} has neither eval nor decompose",
             op_name(n.op()));
  Graph g(std::string(op_name(n.op())));
  std::vector<Value> operands;
  for (Value v : n.operands())
    operands.push_back(
        g.add_arg(fmt::format("x{}", operands.size()), v.type()));
  Node* copy = g.create(n.op(), operands, n.attr_list(), nullptr, n.where,
                        n.body() ? n.body()->clone() : nullptr);
  Builder b(g, copy);
  Values results = n.def().decompose(b, *copy);
  g.erase(copy);
  g.set_outputs(results);
  return run(g, in, precision);
}

double round_int(double x, DType t) {
  if (t == DType::I64) return x;
  auto bits = uint32_t(uint64_t(int64_t(x)));
  return t == DType::U32 ? double(bits) : double(int32_t(bits));
}

void round_result(Tensor& t, Precision precision) {
  if (precision == Precision::F64 && is_float(t.type.dtype)) return;
  round_to_dtype(t);
}

}  // namespace

void round_to_dtype(Tensor& t) {
  switch (t.type.dtype) {
    case DType::F64: return;
    case DType::F32:
      for (double& x : t.data) x = double(float(x));
      return;
    case DType::BF16:
      for (double& x : t.data) x = double(bf16_to_f32(f32_to_bf16(float(x))));
      return;
    case DType::F16:
      for (double& x : t.data) x = double(f16_to_f32(f32_to_f16(float(x))));
      return;
    case DType::Bool:
      for (double& x : t.data) x = x != 0;
      return;
    default:
      for (double& x : t.data) x = round_int(x, t.type.dtype);
  }
}

std::vector<Tensor> interpret_node(const Node& n, Inputs in,
                                   Precision precision) {
  if (n.body()) return run(*n.body(), in, precision);
  if (!n.def().eval) return run_decomposed(n, in, precision);
  std::vector<Tensor> out;
  for (const Type& t : n.types()) out.push_back(Tensor::zeros(t));
  n.def().eval({n, in, absl::MakeSpan(out)});
  for (Tensor& t : out) round_result(t, precision);
  return out;
}

std::vector<Tensor> interpret(const Graph& g, absl::Span<const Tensor> args,
                              Precision precision, const Observer& observe) {
  if (args.size() != g.args().size())
    user_error("@{} takes {} arguments, not {}", g.name(), g.args().size(),
               args.size());
  std::vector<const Tensor*> pointers;
  for (size_t i = 0; i < args.size(); ++i) {
    const Type& want = g.args()[i]->type();
    if (args[i].type != want)
      user_error("@{}: argument %{} is {}, not {}", g.name(),
                 g.arg_name(int(i)), to_string(want), to_string(args[i].type));
    MOEC_CHECK(i64(args[i].data.size()) == want.numel());
    pointers.push_back(&args[i]);
  }
  return run(g, pointers, precision, observe);
}

}  // namespace moec
