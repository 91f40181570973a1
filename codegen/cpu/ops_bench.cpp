#include "codegen/cpu/ops_bench.h"

#include <fmt/format.h>

#include "codegen/cpu/graph_bench.h"
#include "ir/builder.h"

namespace moec {

namespace {

struct Shape : OpShape {
  Shape(std::string text) {
    name = std::move(text);
    graph = std::make_shared<Graph>("op");
  }
  Value arg(const char* n, DType t, Dims dims) {
    return graph->add_arg(n, {t, std::move(dims)});
  }
  // The graph's results are those of one node, named `names` if given.
  void node(Op op, std::initializer_list<Value> in, const AttrList& attrs = {},
            std::vector<std::string> names = {}) {
    Node* n =
        graph->create(op, absl::MakeConstSpan(in.begin(), in.size()), attrs);
    Values out;
    for (int i = 0; i < n->num_results(); ++i) out.push_back(n->result(i));
    graph->set_outputs(out, std::move(names));
  }
};

OpShape loss(i64 tokens, i64 vocab, i64 dim, DType t) {
  Shape s(fmt::format("cross entropy T{} V{} d{}", tokens, vocab, dim));
  Value x = s.arg("x", t, {tokens, dim}), w = s.arg("w", t, {vocab, dim});
  Value targets = s.arg("t", DType::I32, {tokens});
  s.node(Op::LinearCrossEntropyBoth,
         {x, w, targets, s.arg("dloss", DType::F32, {tokens})});
  s.flops = 6.0 * double(tokens) * double(vocab * dim);
  s.ids = vocab;
  return s;
}

OpShape adamw(i64 n) {
  Shape s(fmt::format("adamw {:.1f} M", double(n) / 1e6));
  const DType t = DType::F32;
  Value p = s.arg("p", t, {n}), g = s.arg("g", t, {n});
  Value m = s.arg("m", t, {n}), v = s.arg("v", t, {n});
  Value lr = s.arg("lr", t, {}), step = s.arg("step", t, {});
  s.node(Op::AdamW, {p, g, m, v, lr, step, s.arg("scale", t, {})}, {},
         {"p", "m", "v"});
  s.stream = {4, 3, 4 * n, true};
  return s;
}

// Ops on rows [n, cols], by what they read and write of that size.
struct Rows : Shape {
  Value x, y, gamma, beta;
  Rows(const char* what, i64 n, i64 cols, DType t, int r, int w)
      : Shape(fmt::format("{} {}x{}", what, n, cols)) {
    x = arg("x", t, {n, cols}), y = arg("y", t, {n, cols});
    gamma = arg("g", t, {cols}), beta = arg("b", t, {cols});
    stream = {r, w, n * cols * dtype_size(t)};
  }
};

// Rows of the gradient by owner: reads the tokens' rows, writes the table.
OpShape embedding_grad(i64 tokens, i64 vocab, i64 dim) {
  Shape s(fmt::format("embedding gradient T{} V{} d{}", tokens, vocab, dim));
  const DType t = DType::F32;
  Value table = s.arg("t", t, {vocab, dim});
  Value ids = s.arg("ids", DType::I32, {tokens});
  Value dy = s.arg("dy", t, {tokens, dim});
  Builder b(*s.graph);
  Value e = b.op(Op::Embedding, {table, ids});
  s.node(Op::Grad, {b.sum(b.mul(e, dy), {0, 1}), table});
  s.stream = {1, 1, 2 * (tokens + vocab) * dim};  // half of what is moved
  s.ids = vocab;
  return s;
}

}  // namespace

std::vector<OpShape> bench_op_shapes(bool bf16) {
  const DType t = bf16 ? DType::BF16 : DType::F32;
  std::vector<OpShape> all = {loss(2048, 8192, 384, t), loss(4096, 65, 128, t),
                              loss(512, 50304, 576, t),
                              loss(2048, 8191, 383, t)};
  if (!bf16) {  // the moments and master weights stay in f32
    all.push_back(adamw(1 << 20));
    all.push_back(adamw(8 << 20));
    all.push_back(embedding_grad(4096, 65, 384));
    all.push_back(embedding_grad(4096, 8192, 384));
  }
  auto rows = [&](const char* what, i64 cols, int reads, int writes,
                  auto make) {
    Rows s(what, 4096, cols, t, reads, writes);
    make(s);
    all.push_back(s);
  };
  rows("rms_norm", 384, 1, 1,
       [](Rows& s) { s.node(Op::RmsNorm, {s.x, s.gamma}); });
  rows("rms_norm gradient", 384, 2, 1,
       [](Rows& s) { s.node(Op::RmsNormGrad, {s.x, s.gamma, s.y}); });
  rows("layer_norm", 384, 1, 1,
       [](Rows& s) { s.node(Op::LayerNorm, {s.x, s.gamma, s.beta}); });
  rows("layer_norm gradient", 384, 2, 1,
       [](Rows& s) { s.node(Op::LayerNormGrad, {s.x, s.gamma, s.y}); });
  rows("softmax", 512, 1, 1, [](Rows& s) { s.node(Op::Softmax, {s.x}); });
  rows("softmax gradient", 512, 2, 1,
       [](Rows& s) { s.node(Op::SoftmaxGrad, {s.x, s.y}); });
  rows("gelu", 512, 1, 1, [](Rows& s) { s.node(Op::Gelu, {s.x}); });
  Shape rope("rope 8x512x8x64");
  rope.node(Op::Rope, {rope.arg("x", t, {8, 512, 8, 64})}, {{"axis", i64(1)}});
  rope.stream = {1, 1, 8 * 512 * 8 * 64 * dtype_size(t)};
  all.push_back(rope);
  return all;
}

BenchRow bench_op(KernelLibrary& lib, const OpShape& s, bool bf16,
                  double seconds) {
  GraphBench graph(lib, s.graph->clone(), s.ids);
  BenchRow row = time_launches(lib, s.name, graph.launches(), bf16, seconds);
  if (s.flops) {
    row.flops = s.flops;
    return row;
  }
  row.peak = 0;
  row.bytes = s.stream.total();
  row.stream = measure_stream(lib, s.stream, seconds);
  return row;
}

}  // namespace moec
