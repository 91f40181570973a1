// Evaluates the values of a row program at one place: what row and column
// kernels share.
#pragma once
#include <array>
#include <vector>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/rows.h"

namespace moec {

V emit_identity(Emit&, Reduction, DType);
V emit_combine(Emit&, Reduction, DType, V acc, V x);
// Lanes combined half with half.
V emit_horizontal(Emit&, Reduction, DType, V vector);
// The dtype that `t` has in registers and accumulators.
DType register_dtype(DType t);

class RowEvaluator {
 public:
  RowEvaluator(Emit& e, const RowProgram& p);

  int width() const { return width_; }
  // Vectors of one step of the unrolled loop.
  int unroll() const { return unroll_; }

  // Loads what does not depend on the row; once, before any loop.
  void begin_task();
  // Starts a row; `coords`: one index per outer dimension.
  void begin_row(const Vs& coords);
  // Emits row values and addresses of phases <= `phase`, outside the loop that
  // uses them.
  void prepare(int phase);
  void set_row_value(int expr, V v) { row_[expr] = v; }
  // `keep` says which values of earlier phases are in row buffers.
  void set_kept(const std::vector<V>* buffers) { kept_ = buffers; }

  // Starts a vector of columns c .. c+width-1. `group`: this vector's number in
  // a step that starts at a multiple of 64 columns, or -1.
  void begin_vector(int phase, V c, V mask, int group);
  V vector(int expr);                     // splat if it is a row value
  V row(int expr) { return row_[expr]; }  // scalar
  V address(const Access&, V column);     // of the current row
  void store(const Access&, V vector);    // at the current vector

  static std::vector<V> coordinates(Emit&, const Dims& outer, V row);

 private:
  V row_offset(const Access&);
  V compute_row(const Expr&);
  V compute_vector(int i);
  V load_vector(int i);
  V random(int i, V place, int group);
  V scalar_op(const Expr&, const Vs& in);

  Emit& e_;
  const RowProgram& p_;
  int width_, unroll_;
  bool aligned_random_ = false;
  // Elementwise programs stream: what follows is asked for.
  bool streams_ = false;
  Vs uniform_, row_, full_, base_, valid_;
  std::vector<std::array<V, 2>> keys_;
  std::vector<std::array<V, 4>> words_;
  Vs coords_;
  const std::vector<V>* kept_ = nullptr;
  int phase_ = 0, group_ = -1;
  V column_ = nullptr, mask_ = nullptr;
};

}  // namespace moec
