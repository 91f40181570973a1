// Runs a graph node by node through the CPU lowerings, every value in a
// buffer of its own: the lowerings without passes, plan or executable.
#pragma once
#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "codegen/cpu/jit.h"
#include "codegen/cpu/lower.h"
#include "codegen/tensor_io.h"
#include "ir/interpreter.h"
#include "runtime/buffer.h"
#include "support/thread_pool.h"

namespace moec {

class NodeRunner {
 public:
  NodeRunner(const Target& t, int threads) : library_(t, ""), pool_(threads) {}

  std::vector<Tensor> run(const Graph& g, absl::Span<const Tensor> args) {
    absl::flat_hash_map<Value, Buffer> memory;
    size_t next = 0;
    for (Node* n : g) {
      if (n->op() == Op::Return) continue;
      for (int r = 0; r < n->num_results(); ++r)
        memory.try_emplace(n->result(r), n->type(r).bytes() + 64);
      if (n->op() == Op::Arg) {
        store_tensor(args[next++], memory.at(n->result()).bytes());
        continue;
      }
      launch(*n, memory);
    }
    std::vector<Tensor> out;
    for (Value v : g.outputs()) {
      Buffer& b = memory.at(v);
      // Nothing may have been written behind the end.
      for (i64 i = v.type().bytes(); i < b.size(); ++i)
        overrun_ = overrun_ || b.data()[i] != std::byte{0};
      out.push_back(load_tensor(v.type(), b.bytes()));
    }
    return out;
  }
  bool overrun() const { return overrun_; }
  KernelLibrary& library() { return library_; }

 private:
  void launch(Node& n, absl::flat_hash_map<Value, Buffer>& memory) {
    Lowered low = lower_cpu(n, library_.target());
    Buffer workspace(std::max<i64>(64, low.workspace_bytes));
    std::vector<std::byte*> own;
    for (Value v : n.operands()) own.push_back(memory.at(v).data());
    for (int r = 0; r < n.num_results(); ++r)
      own.push_back(memory.at(n.result(r)).data());
    own.push_back(workspace.data());
    for (LoweredLaunch& l : low.launches) {
      KernelFn fn = library_.get(l.spec);
      std::vector<std::byte*> table;
      for (size_t i = 0; i < l.buffers.size(); ++i)
        table.push_back(own[l.buffers[i]] +
                        (l.offsets.empty() ? 0 : l.offsets[i]));
      i64 scratch = (l.spec.scratch_bytes + 127) / 64 * 64;
      Buffer room(scratch * pool_.threads());
      pool_.run(l.spec.tasks, [&](int64_t task, int thread) {
        fn(table.data(), task, room.data() + thread * scratch);
      });
    }
  }

  KernelLibrary library_;
  ThreadPool pool_;
  bool overrun_ = false;
};

}  // namespace moec
