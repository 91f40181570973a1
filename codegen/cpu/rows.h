// Row programs: what a fused body, or one op, computes over an iteration space
// of rows and columns. Lowering builds one from the IR (row_build.h) and one
// emitter turns it into loops (row_emit.cpp, row_column.cpp).
//
// A value is one scalar per row, or varies along the columns ("full": vectors).
// Reductions over the columns make row values of full ones and so cut the loop
// over a row into phases. A full value that a later phase needs is computed
// again, or kept in a row buffer (L1) if it is dear.
#pragma once
#include <string>
#include <vector>

#include "codegen/cpu/kernel.h"
#include "ir/graph.h"

namespace moec {

struct Target;

// Element (i0, i1, ...) of the iteration space is at offset + sum(stride * i).
struct Access {
  int buffer = -1;  // of the launch
  DType dtype = DType::F32;
  i64 offset = 0;  // elements
  Dims strides;    // elements, one per dimension of the space
  // An integer value, multiplied by index_stride and added; outside
  // [0, index_limit) zeros are read. Loads only.
  int index = -1;
  i64 index_stride = 0, index_limit = 0;
};

enum class ExprKind : uint8_t {
  Load,      // memory
  Constant,  // `number`
  Index,     // i32: the place that `access` gives (iota)
  Scalar,    // the elementwise op `op` of `in`
  Reduce,    // of in[0] over the columns
  Random,    // number of support/rng.h for the element at the place that
             // `access` gives, with the key u32[2] in buffer access.buffer and
             // the stream `number`; attr: "word" (u32), "uniform", "normal"
};

// MaxNumber ignores NaN; Max and Min pass it on.
enum class Reduction : uint8_t { Sum, Max, Min, MaxNumber };

struct Expr {
  ExprKind kind = ExprKind::Load;
  DType dtype = DType::F32;
  Op op = Op::Add;
  std::string attr;  // compare: direction
  Reduction reduction = Reduction::Sum;
  std::vector<int> in;
  double number = 0;
  Access access;
  // Set by analyse().
  bool full = false;     // varies along the columns
  bool uniform = false;  // the same in all rows and columns
  int phase = 0;         // the first loop over the columns that can compute it
  double cost = 0;       // vector additions to compute it from memory
};

enum class StoreKind : uint8_t { Full, Row, Column };

struct RowStore {
  StoreKind kind = StoreKind::Full;
  int value = 0;
  Access to;
  // Column: reduces over the rows of a task; `to` has stride 0 in the
  // dimensions it reduces, and block_stride separates the row blocks.
  // Row: block_stride separates the column blocks.
  Reduction reduction = Reduction::Sum;
  i64 block_stride = 0;
  double scale = 1;
};

struct RowProgram {
  Dims dims;  // the last one is the columns; rank >= 1
  std::vector<Expr> exprs;
  std::vector<RowStore> stores;
  std::string label;  // first word of the kernel's key

  i64 cols() const { return dims.back(); }
  i64 rows() const;
  int add(Expr e);
  void analyse();
  bool has_reductions() const;
  bool has_columns() const;  // column stores
  // Nanoseconds per element of the space, roughly; sets the size of tasks.
  double ns_per_element() const;
  double bytes() const;  // read and written once
  std::string key() const;
};

// Drops dimensions of size 1 and merges those that every access walks as one;
// the columns stay as they are if `keep_columns`.
void collapse(RowProgram&, bool keep_columns);

// How the space is cut into tasks; from the program alone, never from the
// machine.
struct RowPlan {
  i64 rows_per_task = 1, row_blocks = 1;
  i64 cols_per_task = 1, col_blocks = 1;
};
RowPlan plan_rows(const RowProgram&, bool split_columns);
// Elements that make a task of a good length.
i64 task_elements(double ns_per_element, i64 elements);

// One launch. With column blocks, reductions cover one block each.
KernelSpec row_kernel(RowProgram, const Target&, const RowPlan&);

// A program whose only stores are columns: `blocks` row blocks for each kept
// row.
KernelSpec column_kernel(RowProgram, const Target&, i64 blocks);

}  // namespace moec
