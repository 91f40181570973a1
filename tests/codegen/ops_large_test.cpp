// Shapes that are cut into several tasks, blocks and launches.
#include "ir/builder.h"
#include "tests/codegen/harness.h"
#include "tests/codegen/node_runner.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

using In = absl::Span<const Value>;
using Ints = std::vector<i64>;

OpInput f32(Dims d, double low = -1, double high = 1) {
  return {{DType::F32, std::move(d)}, low, high};
}
OpInput i32(Dims d, double low, double high) {
  return {{DType::I32, std::move(d)}, low, high};
}

OpCase large(std::string name, Op op, std::vector<OpInput> in,
             AttrList attrs = {}, double tolerance = 4e-6) {
  OpCase c{name, op, std::move(in), nullptr};
  c.tolerance = tolerance;
  c.build = [op, attrs](Builder& b, In x) {
    Node* n = b.node(op, x, attrs);
    Values out;
    for (int r = 0; r < n->num_results(); ++r) out.push_back(n->result(r));
    return out;
  };
  return c;
}

// Attention and its gradient, [B,T,H,D].
OpCase attention(std::string name, Dims q, Dims k) {
  OpCase c{name, Op::AttentionGrad, {f32(q), f32(k), f32(k), f32(q)}, nullptr};
  c.tolerance = 2e-5;
  c.build = [](Builder& b, In x) {
    AttrList attrs = {{"causal", true}, {"layout", std::string("bthd")}};
    Node* f = b.node(Op::Attention, {x[0], x[1], x[2]}, attrs);
    Values in = {x[0], x[1], x[2], f->result(0), f->result(1), x[3]};
    Node* g = b.node(Op::AttentionGrad, in, attrs);
    return Values{f->result(0), g->result(0), g->result(1), g->result(2)};
  };
  return c;
}

std::vector<OpCase> cases() {
  std::vector<OpCase> all;
  all.push_back(attention("keys with several owners", {1, 1030, 2, 12},
                          {1, 1030, 1, 12}));
  all.push_back(attention("heads far apart", {2, 70, 64, 17}, {2, 83, 64, 17}));
  auto sum = [&](const char* name, Dims d, Ints axes) {
    // sums of some 1e5 that cancel nearly to nothing
    for (Op op : {Op::Sum, Op::Mean, Op::ReduceMax})
      all.push_back(large(name, op, {f32(d)}, {{"axes", axes}},
                          op == Op::Sum ? 2e-3 : 2e-4));
  };
  sum("all of a vector", {700001}, {0});
  sum("all of a matrix", {301, 1009}, {0, 1});
  sum("few long rows", {3, 300007}, {1});
  sum("tall columns", {20000, 67}, {0});
  sum("columns in batches", {3, 5000, 70}, {1});
  sum("short groups", {3000, 2, 100}, {1});
  sum("both ends", {40, 300, 51}, {0, 2});
  all.push_back(large("long vectors", Op::Add, {f32({600007}), f32({600007})}));
  all.push_back(
      large("rows and a vector", Op::Mul, {f32({5000, 129}), f32({129})}));
  all.push_back(
      large("column and rows", Op::Sub, {f32({5000, 1}), f32({5000, 129})}));
  all.push_back(large("softmax", Op::Softmax, {f32({3000, 200}, -9, 9)}));
  all.push_back(large("wide softmax", Op::Softmax, {f32({7, 50001}, -9, 9)}));
  all.push_back(large("softmax of another axis", Op::Softmax,
                      {f32({40, 100, 33}, -5, 5)}, {{"axis", i64(1)}}));
  all.push_back(large(
      "layer_norm_grad", Op::LayerNormGrad,
      {f32({6000, 200}), f32({200}, 0.5, 1.5), f32({6000, 200})}, {}, 2e-5));
  all.push_back(large("rms_norm_grad", Op::RmsNormGrad,
                      {f32({6000, 97}), f32({97}, 0.5, 1.5), f32({6000, 97})},
                      {}, 2e-5));
  all.push_back(large("cross_entropy", Op::CrossEntropy,
                      {f32({900, 1003}, -9, 9), i32({900}, -1, 1002)}));
  all.push_back(large("transpose", Op::Transpose, {f32({9, 701, 130})},
                      {{"perm", Ints{2, 0, 1}}}));
  all.push_back(large("swap of the middle", Op::Transpose,
                      {f32({6, 300, 7, 64})}, {{"perm", Ints{0, 2, 1, 3}}}));
  all.push_back(large("scatter_add", Op::ScatterAdd,
                      {i32({9000}, -1, 499), f32({9000, 67})},
                      {{"rows", i64(500)}}, 2e-5));
  all.push_back(
      large("gather", Op::Gather, {f32({500, 67}), i32({9000}, -1, 499)}));
  all.push_back(large("bincount", Op::Bincount, {i32({50000}, -1, 16)},
                      {{"size", i64(17)}}));
  all.push_back(large("top_k", Op::TopK, {f32({3000, 70})}, {{"k", i64(5)}}));
  all.push_back(large("route", Op::Route, {i32({9000, 2}, -1, 30)},
                      {{"experts", i64(31)}}));
  for (Dims d : {Dims{200, 128}, Dims{100001}, Dims{300, 200}})
    all.push_back(large("dropout", Op::Dropout,
                        {f32(d), {{DType::U32, {2}}, 0, 1, {7, 9}}},
                        {{"p", 0.3}, {"stream", i64(5)}}));
  return all;
}

}  // namespace

TEST_CASE("large shapes agree with the interpreter, whatever the threads") {
  for (const Target& t : test_targets()) {
    CAPTURE(t.level);
    NodeRunner one(t, 1), three(t, 3);
    for (const OpCase& c : cases()) {
      CAPTURE(c.name);
      auto g = build_graph(c);
      auto in = random_inputs(c);
      auto want = interpret(*g, in), a = one.run(*g, in), b = three.run(*g, in);
      for (size_t i = 0; i < want.size(); ++i) {
        CAPTURE(i);
        std::string d = difference(a[i], want[i], c.tolerance);
        CHECK_MESSAGE(d == "", d);
        CHECK(std::memcmp(a[i].data.data(), b[i].data.data(),
                          8 * a[i].data.size()) == 0);
      }
      CHECK(!one.overrun());
    }
    if (t.level == "native" && !long_tests()) break;
  }
}

}  // namespace moec
