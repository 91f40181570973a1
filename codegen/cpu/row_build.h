// Row programs from the IR: a fusion's body, or one op seen as a body.
//
// What a body may hold: elementwise ops, cast, constant, iota, broadcast,
// random_*, dropout, causal_mask, one_hot; reshapes that only add or drop axes
// of size 1, and any reshape of an argument or just before an output; slices,
// transposes, gather, embedding, take_along, dynamic_slice of an argument;
// reductions, softmax, norms, cross_entropy and their gradients over the
// last axis of the largest shape; sums and means over other axes only as
// outputs (per-column gradients). Every output covers all the rows, all the
// elements, or all the columns. An output may share memory with an operand of
// its type that the body reads elementwise only.
#pragma once
#include <map>
#include <tuple>
#include <vector>

#include "codegen/cpu/rows.h"

namespace moec {

class RowBuilder {
 public:
  // `n`: a fusion, or an op of the list above. Buffers: operands, then results.
  explicit RowBuilder(const Node& n);

  // The program; throws InternalError for a body that it cannot hold.
  RowProgram build();
  // Whether the ops of a body are all of the kinds above.
  static bool can_hold(const Node& n);

 private:
  // Where one axis of a value lies in the space: its index is
  // offset + stride * (index of space axis `dim`).
  struct Axis {
    int dim = -1;
    i64 offset = 0, stride = 0;
    auto operator<=>(const Axis&) const = default;
  };
  using View = std::vector<Axis>;

  void choose_space();
  bool is_leaf(Value v) const;
  Type type_of(Value v) const { return v.type(); }
  View identity() const;
  View aligned(const Type& of, const Type& result, const View& v) const;
  View dropped(View v, i64 axis) const;
  View unreshaped(const Type& from, const Type& to, const View& v) const;
  bool find_view(Value v, View& out) const;
  void add_output(Value v, int buffer);

  int value(Value v, const View& view);
  int compute(Value v, const View& view);
  int leaf(Value v, const Type& as, const View& view);
  Access access(int buffer, const Type& t, const View& view) const;
  int indexed(Node& n, const View& view);
  int norm(Node& n, int result, const View& view);
  int norm_grad(Node& n, int result, const View& view);
  int loss(Node& n, int result, const View& view);
  int random(Node& n, const View& view);
  int pick(Value table, const View& row, int index);

  // Expressions, value-numbered.
  int add(Expr e);
  int scalar(Op op, DType t, std::vector<int> in, std::string attr = "");
  int constant(DType t, double v);
  int reduce(Reduction r, int x);
  int index(const Access& place);
  int cast(int x, DType t);
  DType dtype(int x) const { return program_.exprs[x].dtype; }
  DType wide(Value v) const;  // f32, or f64 if the value is
  int column(const View& view, i64 axis) const;

  const Node& node_;
  const Graph* body_ = nullptr;
  Dims space_;              // in the order of the program: columns last
  std::vector<int> place_;  // space axis of each axis of a space-shaped value
  Dims shape_;              // the largest shape, in its own order
  RowProgram program_;
  std::map<std::tuple<Node*, int, View>, int> memo_;
  std::map<std::string, int> numbered_;
};

}  // namespace moec
