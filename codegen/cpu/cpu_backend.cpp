// Scheduled graph -> launches -> kernels -> Program -> Executable.
#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "codegen/backend.h"
#include "codegen/cpu/jit.h"
#include "codegen/cpu/join_launches.h"
#include "codegen/cpu/lower.h"
#include "codegen/cpu/target.h"
#include "codegen/tensor_io.h"
#include "ir/op_def.h"
#include "ir/text.h"
#include "passes/memory_plan.h"
#include "runtime/executable.h"
#include "support/error.h"

namespace moec {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point t) {
  return std::chrono::duration<double>(Clock::now() - t).count();
}

// What the functions of one backend share.
struct Machine {
  Machine(int threads, const Target& target) : library(target), pool(threads) {}
  KernelLibrary library;
  ThreadPool pool;
  std::shared_ptr<Workspace> workspace = std::make_shared<Workspace>();
};

class CpuFunction : public CompiledFunction {
 public:
  CpuFunction(std::shared_ptr<Machine> machine, const Graph& g)
      : machine_(std::move(machine)) {
    inputs_ = input_specs(g);
    outputs_ = output_specs(g);
    auto start = Clock::now();
    lower_nodes(g);
    MemoryPlan plan =
        plan_memory(g, [&](const Node& n) { return workspace_of(n); });
    add_launches(g, plan);
    info_.plan_s = since(start);
    start = Clock::now();
    link();
    info_.kernels_s = since(start);
    executable_ = std::make_unique<Executable>(program_, machine_->pool,
                                               machine_->workspace);
    nodes_.clear();
  }

  void run(std::span<const Bytes> inputs,
           std::span<const Bytes> outputs) override {
    executable_->run(inputs, outputs);
  }
  const Program* program() const override { return program_.get(); }
  void set_trace(Trace* t) override { executable_->set_trace(t); }
  void set_watch(Watch w) override { executable_->set_watch(std::move(w)); }

  std::string code(std::string_view form) const override {
    std::string all;
    std::vector<std::string> seen;
    for (const KernelSpec& s : specs_) {
      if (std::find(seen.begin(), seen.end(), s.key) != seen.end()) continue;
      seen.push_back(s.key);
      all += form == "asm" ? machine_->library.assembly(s)
                           : machine_->library.llvm_ir(s);
    }
    return all;
  }

 private:
  void lower_nodes(const Graph& g) {
    for (Node* n : g)
      if (n->op() != Op::Arg && n->op() != Op::Return)
        nodes_.emplace(n, lower_cpu(*n, machine_->library.target()));
  }

  i64 workspace_of(const Node& n) const {
    auto it = nodes_.find(&n);
    return it == nodes_.end() ? 0 : it->second.workspace_bytes;
  }

  static BufferRef ref(const BufferSlot& s, i64 offset = 0) {
    return {Space(s.space), int32_t(s.index), s.offset + offset};
  }

  void add_launches(const Graph& g, const MemoryPlan& plan) {
    Program& p = *program_;
    p.name = g.name();
    p.inputs = inputs_;
    p.outputs = outputs_;
    p.donated.assign(plan.donated.begin(), plan.donated.end());
    donated_ = p.donated;
    p.arena_bytes = plan.arena_bytes;
    for (Node* c : plan.constants) {
      Tensor t = Tensor::zeros(c->type());
      std::fill(t.data.begin(), t.data.end(), c->f("value"));
      p.constants.emplace_back(size_t(c->type().bytes()));
      store_tensor(t, p.constants.back());
      info_.constant_bytes += c->type().bytes();
    }
    for (Node* n : g) {
      auto it = nodes_.find(n);
      if (it == nodes_.end() || n->op() == Op::Reshape) continue;
      if (n->op() == Op::Constant &&
          plan.slots.at(n->result()).space == PlannedSpace::Constant)
        continue;
      add_node(*n, it->second, plan);
    }
    join_launches(p, memory_);
    memory_.clear();
    for (const PlannedCopy& c : plan.copies) {
      if (c.from.bytes == 0) continue;
      Launch l;
      l.label = "copy";
      l.buffers = {ref(c.from), ref(c.to)};
      add(std::move(l), copy_kernel(c.from.bytes));
    }
    info_.launches = int(p.launches.size());
    info_.arena_bytes = p.arena_bytes;
    info_.scratch_bytes = p.scratch_bytes;
  }

  void add_node(const Node& n, Lowered& low, const MemoryPlan& plan) {
    std::vector<BufferSlot> own;
    for (Value v : n.operands()) own.push_back(plan.slots.at(v));
    for (int r = 0; r < n.num_results(); ++r)
      own.push_back(plan.slots.at(Value{const_cast<Node*>(&n), r}));
    if (low.workspace_bytes) own.push_back(plan.workspaces.at(&n));
    double stated = 0;
    for (const LoweredLaunch& l : low.launches) stated += l.spec.flops;
    bool first = true;
    for (LoweredLaunch& l : low.launches) {
      if (l.copy_of >= 0) {
        const BufferSlot& a = own[l.copy_of];
        const BufferSlot& b = own[n.num_operands() + l.copy_to];
        if (a == b) continue;
      }
      if (l.spec.tasks == 0) continue;
      Launch out;
      out.label = label_of(n);
      out.source = source_of(n);
      for (size_t i = 0; i < l.buffers.size(); ++i)
        out.buffers.push_back(
            ref(own[l.buffers[i]], l.offsets.empty() ? 0 : l.offsets[i]));
      // What the kernels do not state is the node's, at its first launch.
      if (stated == 0 && first) l.spec.flops = cost_of(n).flops;
      first = false;
      LaunchMemory memory;
      for (int b : l.buffers)
        (b < n.num_operands() ? memory.reads : memory.writes).push_back(own[b]);
      memory_.push_back(std::move(memory));
      add(std::move(out), std::move(l.spec));
    }
    // No launch: it renames memory or has nothing to do.
    if (first) return;
    for (int r = 0; r < n.num_results(); ++r)
      program_->launches.back().results.push_back(
          {ref(own[size_t(n.num_operands() + r)]), n.type(r).dtype,
           n.type(r).bytes()});
  }

  void add(Launch l, KernelSpec spec) {
    Program& p = *program_;
    l.tasks = spec.tasks;
    l.scratch_bytes = spec.scratch_bytes;
    l.flops = spec.flops;
    l.bytes = spec.bytes;
    info_.flops += l.flops;
    info_.bytes += l.bytes;
    p.scratch_bytes = std::max(p.scratch_bytes, l.scratch_bytes);
    p.launches.push_back(std::move(l));
    specs_.push_back(std::move(spec));
  }

  void link() {
    Program& p = *program_;
    CompileStats stats;
    auto functions = machine_->library.get(specs_, &stats);
    absl::flat_hash_map<std::string, int> index;
    for (size_t i = 0; i < specs_.size(); ++i) {
      p.launches[i].fn = functions[i];
      std::string name = machine_->library.symbol(specs_[i]);
      auto [it, fresh] = index.try_emplace(name, int(p.kernel_names.size()));
      if (fresh) p.kernel_names.push_back(name);
      p.launches[i].kernel = it->second;
    }
    info_.kernels = int(p.kernel_names.size());
    info_.compiled = stats.compiled;
  }

  std::shared_ptr<Machine> machine_;
  absl::flat_hash_map<const Node*, Lowered> nodes_;
  std::vector<KernelSpec> specs_;  // one per launch
  std::vector<LaunchMemory> memory_;
  std::shared_ptr<Program> program_ = std::make_shared<Program>();
  std::unique_ptr<Executable> executable_;
};

class CpuBackend : public Backend {
 public:
  CpuBackend(int threads, const Target& target)
      : machine_(std::make_shared<Machine>(threads, target)) {}
  std::string_view name() const override { return "cpu"; }
  int threads() const override { return machine_->pool.threads(); }
  bool supports(const Node& n) const override {
    return cpu_supports(n, machine_->library.target());
  }
  std::unique_ptr<CompiledFunction> lower(std::unique_ptr<Graph> g) override {
    return std::make_unique<CpuFunction>(machine_, *g);
  }

 private:
  std::shared_ptr<Machine> machine_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  return make_cpu_backend(threads, host_target());
}

std::unique_ptr<Backend> make_cpu_backend(int threads, const Target& target) {
  return std::make_unique<CpuBackend>(threads, target);
}

}  // namespace moec
