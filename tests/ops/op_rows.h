// How the rows of the table are written; only op_cases*.cpp include this.
#pragma once
#include "tests/ops/op_cases.h"

namespace moec {

using In = absl::Span<const Value>;

inline OpInput f32(Dims d, double low = -1, double high = 1) {
  return {Type{DType::F32, std::move(d)}, low, high};
}
inline OpInput statistics(Dims d, double low = -1, double high = 1) {
  OpInput in = f32(std::move(d), low, high);
  in.stays_f32 = true;
  return in;
}
inline OpInput i32(Dims d, double low, double high) {
  return {Type{DType::I32, std::move(d)}, low, high};
}
inline OpInput boolean(Dims d) {
  return {Type{DType::Bool, std::move(d)}, 0, 1};
}
inline OpInput key() {
  return {Type{DType::U32, {2}}, 0, 0, {0x12345678, 0x9abcdef0}};
}
inline OpInput fixed_i32(std::vector<double> values, Dims d = {-1}) {
  if (d == Dims{-1}) d = {i64(values.size())};
  return {Type{DType::I32, d}, 0, 0, std::move(values)};
}

inline Values results(Node* n) {
  Values v;
  for (int i = 0; i < n->num_results(); ++i) v.push_back(n->result(i));
  return v;
}

// One node on all the inputs.
inline OpCase row(std::string name, Op op, std::vector<OpInput> inputs,
                  AttrList attrs = {}) {
  return {std::move(name), op, std::move(inputs),
          [op, attrs](Builder& b, In in) {
            return results(b.node(op, in, attrs));
          }};
}
// Not compared with finite differences: integers, or no gradient.
inline OpCase constant_row(std::string name, Op op, std::vector<OpInput> inputs,
                           AttrList attrs = {}) {
  OpCase c = row(std::move(name), op, std::move(inputs), std::move(attrs));
  c.differentiable = false;
  return c;
}

void add_elementwise_cases(std::vector<OpCase>&);
void add_shape_cases(std::vector<OpCase>&);
void add_reduce_cases(std::vector<OpCase>&);
void add_matmul_cases(std::vector<OpCase>&);
void add_model_cases(std::vector<OpCase>&);
void add_generation_cases(std::vector<OpCase>&);

}  // namespace moec
