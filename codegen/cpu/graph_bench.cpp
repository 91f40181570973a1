#include "codegen/cpu/graph_bench.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "codegen/cpu/jit.h"
#include "codegen/cpu/lower.h"
#include "codegen/tensor_io.h"
#include "passes/pass_manager.h"

namespace moec {

namespace {

Tensor random_tensor(const Type& t, int64_t ids, std::mt19937& gen) {
  Tensor x = Tensor::zeros(t);
  // rows of about unit length, so that products neither vanish nor grow
  const double scale = t.rank() ? 1 / std::sqrt(double(t.dim(-1))) : 1;
  for (double& v : x.data)
    v = is_float(t.dtype) ? scale * (double(gen()) + 1) / 0x1p32
                          : double(gen() % uint64_t(ids));
  return x;
}

}  // namespace

struct GraphBench::Impl {
  KernelLibrary& library;
  std::unique_ptr<Graph> graph;
  absl::flat_hash_map<Value, std::shared_ptr<Buffer>> memory;
  std::vector<Buffer> workspaces;
  struct Bound {
    std::string scope;
    BoundLaunch launch;
  };
  std::vector<Bound> bound;

  Impl(KernelLibrary& lib, std::unique_ptr<Graph> g, int64_t ids)
      : library(lib), graph(std::move(g)) {
    PassContext context;
    context.options.has_lowering = [&](const Node& n) {
      return cpu_supports(n, lib.target());
    };
    run_pipeline(*graph, context);
    std::mt19937 gen(1);
    for (Node* n : graph->args()) {
      place(n->result());
      store_tensor(
          random_tensor(n->type(), ids, gen),
          memory.at(n->result())->bytes().first(size_t(n->type().bytes())));
    }
    share_outputs();
    for (Node* n : *graph)
      if (n->op() != Op::Arg && n->op() != Op::Return) add(*n);
  }

  void place(Value v) {
    if (!memory.contains(v))
      memory[v] = std::make_shared<Buffer>(bench_buffer(v.type().bytes() + 64));
  }

  void share(Value v, Value with) {
    std::shared_ptr<Buffer> m = memory.at(with);
    memory[v] = std::move(m);
  }

  void share_outputs() {
    for (size_t i = 0; i < graph->output_names.size(); ++i)
      for (Node* a : graph->args())
        if (a->names[0] == graph->output_names[i])
          share(graph->outputs()[i], a->result());
  }

  void add(Node& n) {
    Lowered low = lower_cpu(n, library.target());
    if (low.launches.empty()) {  // another name for its operand's memory
      share(n.result(), n.operand(0));
      return;
    }
    for (int r = 0; r < n.num_results(); ++r) place(n.result(r));
    workspaces.push_back(bench_buffer(std::max<i64>(64, low.workspace_bytes)));
    std::vector<std::byte*> own;
    for (Value v : n.operands()) own.push_back(memory.at(v)->data());
    for (int r = 0; r < n.num_results(); ++r)
      own.push_back(memory.at(n.result(r))->data());
    own.push_back(workspaces.back().data());
    for (LoweredLaunch& l : low.launches) {
      BoundLaunch b{std::move(l.spec), {}};
      for (size_t i = 0; i < l.buffers.size(); ++i)
        b.buffers.push_back(own[l.buffers[i]] +
                            (l.offsets.empty() ? 0 : l.offsets[i]));
      run(b);
      bound.push_back({n.where.scope, std::move(b)});
    }
  }

  void run(const BoundLaunch& l) {
    KernelFn fn = library.get(l.spec);
    Buffer scratch(l.spec.scratch_bytes + 64);
    for (int64_t t = 0; t < l.spec.tasks; ++t)
      fn(l.buffers.data(), t, scratch.data());
  }
};

GraphBench::GraphBench(KernelLibrary& lib, std::unique_ptr<Graph> g,
                       int64_t ids)
    : p_(std::make_unique<Impl>(lib, std::move(g), ids)) {}
GraphBench::~GraphBench() = default;

std::vector<BoundLaunch> GraphBench::launches(std::string_view scope) const {
  std::vector<BoundLaunch> all;
  for (const auto& b : p_->bound)
    if (scope.empty() || b.scope == scope) all.push_back(b.launch);
  return all;
}

}  // namespace moec
