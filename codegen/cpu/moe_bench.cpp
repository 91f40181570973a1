#include "codegen/cpu/moe_bench.h"

#include <fmt/format.h>

#include "codegen/cpu/graph_bench.h"
#include "ir/builder.h"

namespace moec {

namespace {

std::unique_ptr<Graph> experts(const MoeShape& s, DType t) {
  auto g = std::make_unique<Graph>("experts");
  const Type rows{t, {s.tokens, s.dim}};
  const Type up{t, {s.experts, s.hidden, s.dim}};
  Value x = g->add_arg("x", rows), dy = g->add_arg("dy", rows);
  Value scores = g->add_arg("s", {DType::F32, {s.tokens, s.experts}});
  Value w_up = g->add_arg("up", up), w_gate = g->add_arg("gate", up);
  Value w_down = g->add_arg("down", {t, {s.experts, s.dim, s.hidden}});
  Builder b(*g);
  b.where.scope = "setup";
  Node* chosen = b.node(Op::TopK, {scores}, {{"k", s.top_k}});
  Value w = chosen->result(0);  // f32 in every case
  Node* route =
      b.node(Op::Route, {chosen->result(1)}, {{"experts", s.experts}});
  Values in = {
      x,      w,     route->result(0), route->result(1), route->result(2), w_up,
      w_down, w_gate};
  const AttrList swiglu = {{"activation", std::string("swiglu")}};
  b.where.scope = "forward";
  Node* forward = b.node(Op::MoeFfn, in, swiglu);
  b.where.scope = "backward";
  in.insert(in.begin(), {dy, forward->result(1)});
  Node* backward = b.node(Op::MoeFfnGrad, in, swiglu);
  Values out = {forward->result(0)};
  for (int i = 0; i < backward->num_results(); ++i)
    out.push_back(backward->result(i));
  g->set_outputs(out);
  return g;
}

std::unique_ptr<Graph> dense(const MoeShape& s, DType t) {
  auto g = std::make_unique<Graph>("dense");
  const i64 hidden = s.hidden * s.top_k;
  const Type rows{t, {s.tokens, s.dim}};
  Value x = g->add_arg("x", rows), dy = g->add_arg("dy", rows);
  Value up = g->add_arg("up", {t, {hidden, s.dim}});
  Value gate = g->add_arg("gate", {t, {hidden, s.dim}});
  Value down = g->add_arg("down", {t, {s.dim, hidden}});
  Builder b(*g);
  Value u = b.matmul(x, up, false, true), h = b.matmul(x, gate, false, true);
  Value a = b.mul(b.op(Op::Silu, {h}), u);
  Value y = b.matmul(a, down, false, true);
  Value loss = b.sum(b.mul(y, dy), {0, 1});
  Values out = {y};
  Node* grad = b.node(Op::Grad, {loss, x, up, gate, down});
  for (int i = 0; i < grad->num_results(); ++i) out.push_back(grad->result(i));
  g->set_outputs(out);
  return g;
}

}  // namespace

std::string moe_name(const MoeShape& s) {
  return fmt::format("({},{},{},{},{})", s.tokens, s.dim, s.hidden, s.experts,
                     s.top_k);
}

std::vector<MoeShape> bench_moe_shapes() {
  return {{2048, 256, 512, 8, 2}, {2048, 256, 512, 32, 2},
          {256, 256, 512, 8, 2},  {2048, 512, 1024, 8, 2},
          {2048, 128, 512, 4, 2}, {2048, 250, 511, 8, 2}};
}

std::vector<MoeShape> bench_moe_growth() {
  return {
      {8192, 256, 512, 8, 2}, {8192, 256, 512, 64, 2}, {16384, 256, 512, 8, 2}};
}

std::vector<BenchRow> bench_moe(KernelLibrary& lib, const MoeShape& s,
                                bool bf16, double seconds, bool with_dense) {
  const std::string name = moe_name(s);
  const DType t = bf16 ? DType::BF16 : DType::F32;
  // products alone: what a kernel does beside them is its own cost
  const double product =
      6.0 * double(s.tokens * s.top_k) * double(s.dim * s.hidden);
  std::vector<BenchRow> rows;
  {
    GraphBench graph(lib, experts(s, t));
    for (const char* part : {"forward", "backward"}) {
      rows.push_back(time_launches(lib, name + " " + part, graph.launches(part),
                                   bf16, seconds));
      rows.back().flops = product * (rows.size() == 1 ? 1 : 2);
    }
  }
  BenchRow both = rows[0];
  both.name = name + " both";
  both.seconds += rows[1].seconds, both.cycles += rows[1].cycles;
  both.tasks += rows[1].tasks;
  both.speedup =
      (rows[0].seconds * rows[0].speedup + rows[1].seconds * rows[1].speedup) /
      both.seconds;
  both.flops = 3 * product;
  both.peak = std::max(rows[0].peak, rows[1].peak);
  rows.push_back(both);
  if (with_dense) {
    GraphBench layer(lib, dense(s, t));
    rows.push_back(time_launches(lib, name + " dense layer", layer.launches(),
                                 bf16, seconds));
    rows.back().flops = 3 * product;
  }
  return rows;
}

}  // namespace moec
