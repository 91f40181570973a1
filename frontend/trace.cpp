#include "frontend/trace.h"

#include "support/error.h"

namespace moec::dsl {
namespace {

struct TraceState {
  Graph* graph = nullptr;
  std::vector<Tensor> parameters;
  std::string scope;
  Tensor key;
  i64 streams = 0;
};

thread_local TraceState* current_trace = nullptr;

TraceState& current() {
  if (!current_trace)
    user_error(
        "DSL code ran outside a trace: call it from the function given to "
        "trace(\"name\", params, ...)");
  return *current_trace;
}

Provenance provenance(const std::source_location& l) {
  return {current().scope, l.file_name(), int(l.line())};
}

}  // namespace

Tensor Tensor::named(std::string name) const {
  auto& names = value_.node->names;
  names.resize(size_t(value_.node->num_results()));
  names[size_t(value_.index)] = std::move(name);
  return *this;
}

Operand::Operand(Parameter p, std::source_location l) : where(l) {
  auto& all = current().parameters;
  MOEC_CHECK(p.index >= 0 && p.index < int(all.size()),
             "parameter {} of a trace with {}", p.index, all.size());
  tensor = all[size_t(p.index)];
}

std::unique_ptr<Graph> trace(std::string name, const Parameters& params,
                             FunctionRef<Outputs()> body) {
  if (current_trace)
    user_error("trace(\"{}\") within the trace of \"{}\": traces do not nest",
               name, current_trace->graph->name());
  auto graph = std::make_unique<Graph>(std::move(name));
  TraceState state;
  state.graph = graph.get();
  for (auto& p : params.all())
    state.parameters.emplace_back(
        graph->add_arg(p.name, Type{p.stored, p.dims}));
  for (Tensor& p : state.parameters)
    if (p.dtype() != DType::F32)
      p = Tensor(graph
                     ->create(Op::Cast, {p.value()}, {{"dtype", DType::F32}},
                              nullptr, {})
                     ->result());
  struct Guard {
    ~Guard() { current_trace = nullptr; }
  } guard;
  current_trace = &state;
  Outputs outputs = body();
  Values values;
  std::vector<std::string> names;
  for (auto& o : outputs) {
    values.push_back(o.value.value());
    names.push_back(o.name);
  }
  graph->set_outputs(values, names);
  return graph;
}

std::unique_ptr<Graph> trace(std::string name, FunctionRef<Outputs()> body) {
  return trace(std::move(name), Parameters(), body);
}

Tensor input(std::string name, DType dtype, Dims dims) {
  return Tensor(
      current().graph->add_arg(std::move(name), Type{dtype, std::move(dims)}));
}

std::vector<Tensor> parameter_tensors() { return current().parameters; }

Scope::Scope(std::string_view name) : outer_(current().scope.size()) {
  auto& scope = current().scope;
  if (!scope.empty()) scope += '/';
  scope += name;
}
Scope::~Scope() { current_trace->scope.resize(outer_); }

Training::Training(Tensor key) {
  MOEC_CHECK(!current().key, "training within training");
  current().key = key;
}
Training::~Training() { current_trace->key = {}; }

Tensor training_key() { return current().key; }
i64 next_random_stream() { return current().streams++; }

Node* record(Op op, std::vector<Operand> operands, const AttrList& attrs) {
  auto& t = current();
  Provenance where = operands.empty() ? Provenance{t.scope, "", 0}
                                      : provenance(operands.front().where);
  DType dtype =
      DType::F32;  // of numbers: the first tensor's, not a predicate's
  for (auto& o : operands)
    if (o.tensor && o.tensor.dtype() != DType::Bool) {
      dtype = o.tensor.dtype();
      break;
    }
  Values values;
  for (auto& o : operands) {
    if (!o.tensor) {
      Node* c = t.graph->create(Op::Constant, {},
                                {{"dtype", dtype}, {"value", o.scalar}},
                                nullptr, where);
      o.tensor = Tensor(c->result());
    }
    MOEC_CHECK(&o.tensor.value().node->graph() == t.graph,
               "a tensor of another trace in {}", t.graph->name());
    values.push_back(o.tensor.value());
  }
  return t.graph->create(op, values, attrs, nullptr, where);
}

std::vector<Tensor> grad(Operand loss, const std::vector<Tensor>& xs) {
  std::vector<Operand> operands{loss};
  for (auto& x : xs) operands.emplace_back(x, loss.where);
  Node* n = record(Op::Grad, std::move(operands));
  std::vector<Tensor> grads;
  for (int i = 0; i < n->num_results(); ++i) grads.emplace_back(n->result(i));
  return grads;
}

ValueAndGrad value_and_grad(FunctionRef<Tensor()> loss,
                            std::source_location where) {
  Tensor value = loss();
  return {value, grad(Operand(value, where), current().parameters)};
}

}  // namespace moec::dsl
