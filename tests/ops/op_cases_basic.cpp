// Rows for structure, elementwise, shape, indexing and reductions.
#include <cmath>

#include "ir/op_def.h"
#include "tests/ops/op_rows.h"

namespace moec {
namespace {

using Ints = std::vector<i64>;

OpCase fusion_case() {
  OpCase c{"fusion", Op::Fusion, {f32({3, 41}), f32({41})}, nullptr};
  c.build = [](Builder& b, In in) {
    auto body = std::make_unique<Graph>("fusion");
    Value x = body->add_arg("x", in[0].type());
    Value y = body->add_arg("y", in[1].type());
    Builder inner(*body);
    Value s = inner.add(x, y);
    body->set_outputs({inner.op(Op::Tanh, {s}), inner.mul(s, x)});
    Node* n = b.graph().create(Op::Fusion, in, {}, b.before(), b.where,
                               std::move(body));
    return results(n);
  };
  return c;
}

}  // namespace

void add_elementwise_cases(std::vector<OpCase>& all) {
  Dims d = {3, 41};
  struct Unary {
    Op op;
    double low, high;
  };
  for (auto [op, low, high] :
       std::initializer_list<Unary>{{Op::Neg, -2, 2},
                                    {Op::Abs, -2, 2},
                                    {Op::Exp, -4, 4},
                                    {Op::Log, 0.1, 8},
                                    {Op::Sqrt, 0.1, 8},
                                    {Op::Rsqrt, 0.1, 8},
                                    {Op::Tanh, -4, 4},
                                    {Op::Erf, -3, 3},
                                    {Op::Sigmoid, -8, 8},
                                    {Op::Relu, -2, 2},
                                    {Op::Silu, -8, 8},
                                    {Op::SiluSlope, -8, 8},
                                    {Op::Gelu, -5, 5},
                                    {Op::GeluSlope, -5, 5},
                                    {Op::Softplus, -9, 9},
                                    {Op::Sin, -7, 7},
                                    {Op::Cos, -7, 7}})
    all.push_back(row(std::string(op_name(op)), op, {f32(d, low, high)}));
  // Far from 0, where careless formulas overflow.
  for (Op op : {Op::Tanh, Op::Sigmoid, Op::Silu, Op::SiluSlope, Op::Gelu,
                Op::GeluSlope, Op::Softplus, Op::Erf, Op::Exp})
    all.push_back(constant_row(std::string(op_name(op)) + "/far", op,
                               {f32({64}, -90, op == Op::Exp ? 80 : 90)}));
  all.push_back(constant_row("sign", Op::Sign, {f32(d)}));
  all.push_back(constant_row("neg/i32", Op::Neg, {i32(d, -9, 9)}));
  all.push_back(constant_row("abs/i32", Op::Abs, {i32(d, -9, 9)}));
  all.push_back(constant_row("not", Op::Not, {boolean(d)}));
  all.push_back(constant_row("stop_gradient", Op::StopGradient, {f32(d)}));

  auto cast = [&](const char* name, OpInput in, DType to) {
    all.push_back(constant_row(std::string("cast/") + name, Op::Cast, {in},
                               {{"dtype", to}}));
  };
  cast("f32_bf16", f32(d), DType::BF16);
  cast("f32_f16", f32(d), DType::F16);
  cast("f32_i32", f32(d, -9, 9), DType::I32);
  cast("i32_f32", i32(d, -9, 9), DType::F32);
  cast("i32_i64", i32(d, -9, 9), DType::I64);
  cast("i32_bool", i32(d, 0, 2), DType::Bool);
  cast("bool_f32", boolean(d), DType::F32);
  // There and back, so that there is a gradient.
  all.push_back({"cast/f64", Op::Cast, {f32(d)}, [](Builder& b, In in) {
                   return Values{b.cast(b.cast(in[0], DType::F64), DType::F32)};
                 }});

  for (Op op : {Op::Add, Op::Sub, Op::Mul, Op::Div, Op::Maximum, Op::Minimum,
                Op::Pow}) {
    std::string name(op_name(op));
    double low = op == Op::Div || op == Op::Pow ? 0.5 : -2;
    all.push_back(row(name, op, {f32(d, low, 2), f32(d, low, 2)}));
    all.push_back(row(name + "/row", op, {f32(d, low, 2), f32({41}, low, 2)}));
    all.push_back(
        row(name + "/column", op, {f32({3, 1}, low, 2), f32(d, low, 2)}));
    all.push_back(row(name + "/scalar", op, {f32(d, low, 2), f32({}, low, 2)}));
    all.push_back(row(name + "/outer", op,
                      {f32({2, 1, 17}, low, 2), f32({5, 1}, low, 2)}));
    if (op != Op::Pow)
      all.push_back(
          constant_row(name + "/i32", op, {i32(d, -9, 9), i32(d, -3, 3)}));
  }
  for (Op op : {Op::And, Op::Or})
    all.push_back(constant_row(std::string(op_name(op)), op,
                               {boolean(d), boolean({41})}));
  for (const char* direction : {"lt", "le", "gt", "ge", "eq", "ne"}) {
    all.push_back(constant_row(std::string("compare/") + direction, Op::Compare,
                               {i32(d, 0, 3), i32({41}, 0, 3)},
                               {{"direction", std::string(direction)}}));
    all.push_back(constant_row(std::string("compare/f32_") + direction,
                               Op::Compare, {f32(d), f32({3, 1})},
                               {{"direction", std::string(direction)}}));
  }
  all.push_back(row("select", Op::Select, {boolean(d), f32(d), f32(d)}));
  all.push_back(
      row("select/broadcast", Op::Select, {boolean({3, 1}), f32(d), f32({})}));
}

void add_shape_cases(std::vector<OpCase>& all) {
  all.push_back(fusion_case());
  all.push_back(
      constant_row("constant", Op::Constant, {},
                   {{"shape", Ints{2, 5}}, {"value", -double(INFINITY)}}));
  all.push_back(constant_row("constant/i32", Op::Constant, {},
                             {{"dtype", DType::I32}, {"value", 7.0}}));
  all.push_back(constant_row("iota", Op::Iota, {},
                             {{"shape", Ints{3, 18}}, {"axis", i64(1)}}));
  all.push_back(constant_row("iota/f32", Op::Iota, {},
                             {{"dtype", DType::F32}, {"shape", Ints{5, 4}}}));

  all.push_back(row("broadcast", Op::Broadcast, {f32({3, 1, 5})},
                    {{"shape", Ints{2, 3, 4, 5}}}));
  all.push_back(row("broadcast/scalar", Op::Broadcast, {f32({})},
                    {{"shape", Ints{3, 7}}}));
  all.push_back(
      row("reshape", Op::Reshape, {f32({4, 6})}, {{"shape", Ints{2, 12}}}));
  all.push_back(
      row("transpose", Op::Transpose, {f32({5, 9})}, {{"perm", Ints{1, 0}}}));
  all.push_back(row("transpose/heads", Op::Transpose, {f32({2, 5, 3, 4})},
                    {{"perm", Ints{0, 2, 1, 3}}}));
  all.push_back(row("transpose/all", Op::Transpose, {f32({2, 3, 4})},
                    {{"perm", Ints{2, 0, 1}}}));
  all.push_back(row("slice", Op::Slice, {f32({5, 20})},
                    {{"start", Ints{1, 3}}, {"limit", Ints{4, 20}}}));
  all.push_back(row(
      "slice/strided", Op::Slice, {f32({7, 20})},
      {{"start", Ints{1, 2}}, {"limit", Ints{7, 19}}, {"stride", Ints{2, 5}}}));
  all.push_back(row("concat", Op::Concat,
                    {f32({2, 3, 4}), f32({2, 1, 4}), f32({2, 5, 4})},
                    {{"axis", i64(1)}}));
  all.push_back(row("concat/last", Op::Concat, {f32({3, 8}), f32({3, 5})},
                    {{"axis", i64(-1)}}));
  all.push_back(
      row("pad", Op::Pad, {f32({3, 5})},
          {{"low", Ints{1, 0}}, {"high", Ints{0, 4}}, {"value", 0.5}}));
  for (double start : {0.0, 3.0, 9.0}) {  // the last is clamped
    std::string at = "/" + std::to_string(int(start));
    OpInput from = fixed_i32({start}, {});
    all.push_back(row("dynamic_slice" + at, Op::DynamicSlice,
                      {f32({3, 8, 4}), from},
                      {{"axis", i64(1)}, {"size", i64(3)}}));
    all.push_back(row("dynamic_update_slice" + at, Op::DynamicUpdateSlice,
                      {f32({3, 8, 4}), f32({3, 2, 4}), from},
                      {{"axis", i64(1)}}));
  }

  all.push_back(
      row("gather", Op::Gather, {f32({6, 3, 5}), i32({2, 4}, -1, 5)}));
  all.push_back(
      row("embedding", Op::Embedding, {f32({9, 20}), i32({3, 7}, 0, 8)}));
  all.push_back(row("scatter_add", Op::ScatterAdd,
                    {i32({4, 5}, -1, 5), f32({4, 5, 19})}, {{"rows", i64(6)}}));
  all.push_back(row("scatter_add/elements", Op::ScatterAdd,
                    {i32({40}, -1, 5), f32({40})}, {{"rows", i64(6)}}));
  all.push_back(row("take_along", Op::TakeAlong,
                    {f32({3, 4, 9}), i32({3, 4, 2}, -1, 8)}));
  all.push_back(row("put_along", Op::PutAlong,
                    {i32({3, 4, 2}, -1, 8), f32({3, 4, 2})},
                    {{"size", i64(9)}}));
  all.push_back(constant_row("one_hot", Op::OneHot, {i32({3, 5}, -1, 6)},
                             {{"size", i64(7)}}));
}

void add_reduce_cases(std::vector<OpCase>& all) {
  for (Op op : {Op::Sum, Op::Mean, Op::ReduceMax, Op::ReduceMin}) {
    std::string name(op_name(op));
    all.push_back(
        row(name + "/last", op, {f32({5, 37})}, {{"axes", Ints{-1}}}));
    all.push_back(row(name + "/first", op, {f32({37, 5})},
                      {{"axes", Ints{0}}, {"keepdims", true}}));
    all.push_back(
        row(name + "/middle", op, {f32({3, 6, 21})}, {{"axes", Ints{1}}}));
    all.push_back(row(name + "/outer", op, {f32({3, 6, 4})},
                      {{"axes", Ints{0, 2}}, {"keepdims", true}}));
    all.push_back(
        row(name + "/all", op, {f32({9, 33})}, {{"axes", Ints{0, 1}}}));
  }
  all.push_back(constant_row("sum/i32", Op::Sum, {i32({4, 19}, -5, 5)},
                             {{"axes", Ints{1}}}));
  all.push_back(row("logsumexp", Op::LogSumExp, {f32({4, 35}, -6, 6)},
                    {{"axis", i64(-1)}}));
  all.push_back(row("logsumexp/middle", Op::LogSumExp, {f32({2, 5, 6}, -6, 6)},
                    {{"axis", i64(1)}}));
  all.push_back(
      constant_row("argmax", Op::ArgMax, {f32({6, 35})}, {{"axis", i64(-1)}}));
  all.push_back(constant_row("argmax/ties", Op::ArgMax, {i32({6, 35}, 0, 4)},
                             {{"axis", i64(-1)}}));
  all.push_back(constant_row("bincount", Op::Bincount, {i32({13, 2}, -1, 5)},
                             {{"size", i64(6)}}));
  all.push_back(row("segment_sum", Op::SegmentSum,
                    {f32({9, 5}), fixed_i32({0, 3, 3, 7})}));
}

}  // namespace moec
