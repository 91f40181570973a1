// Matrix products: C = epilogue(scale * A B), with any strides, broadcast batch
// dimensions and rows or reductions grouped by expert.
//
// Method: C tiles of rows x (vectors of columns) in registers; scalars of A
// are broadcast straight from memory, a panel of B (K x panel columns) is
// packed per task into the thread's scratch (Goto and van de Geijn, "Anatomy
// of High-Performance Matrix Multiplication", ACM TOMS 2008, with A unpacked
// unless its columns are far apart). With a workspace, B is packed once,
// before, where many tasks would pack it anew. Every element is summed over k
// in the same order whatever its row, the number of rows or the number of
// threads.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "codegen/cpu/kernel.h"
#include "support/dtype.h"

namespace llvm {
class Value;
}

namespace moec {

struct Target;

// A matrix view into a launch buffer; strides and offset in elements. For A
// rows are m and columns k; for B rows are k and columns n; outputs and extras
// are m x n. A stride of 0 broadcasts.
struct MatmulOperand {
  int buffer = 0;
  DType dtype = DType::F32;
  int64_t row_stride = 0, col_stride = 1, offset = 0;
  std::vector<int64_t> batch_strides =
      {};                    // one per batch dimension; empty: zeros
  int64_t group_stride = 0;  // per expert, in grouped products
};

enum class MatmulGroup : uint8_t {
  None,
  // Rows m are sorted by expert: rows offsets[e] .. offsets[e+1] of A and C
  // meet B + e * group_stride. m is the bound; rows at or past offsets[E]
  // are left alone.
  Rows,
  // The reduction runs over rows of one expert: for every e,
  // C + e * group_stride = sum over k in offsets[e] .. offsets[e+1]. k is the
  // bound; an empty expert gives 0.
  Reduction,
};

struct MatmulDesc {
  int64_t m = 1, n = 1, k = 1;
  std::vector<int64_t> batch;
  MatmulOperand a, b;
  // The first is C. More than one only with an epilogue.
  std::vector<MatmulOperand> outputs{MatmulOperand{}};
  double scale = 1;
  bool accumulate = false;  // C += instead of C =, after the epilogue
  // Multiplies bf16 operands pairwise with f32 accumulation (f32 operands are
  // rounded to bf16 first); else everything is f32.
  bool bf16 = false;

  MatmulGroup group = MatmulGroup::None;
  int64_t experts = 0;
  int offsets_buffer = 0;  // i32[experts + 1]

  // Called on vectors of C: the scaled sum and the extras' values at the same
  // place (f32); returns one value per output. epilogue_key must determine it.
  std::vector<MatmulOperand> extras;
  std::string epilogue_key;
  bool cheap_epilogue = false;  // a few additions: stays in registers
  std::function<std::vector<llvm::Value*>(Emit&, llvm::Value* acc,
                                          std::span<llvm::Value* const> extras)>
      epilogue;
};

// The launches for a product, all of them on the descriptor's buffers and, if
// workspace_bytes is not 0, one more of that size, number `workspace`. Throws
// InternalError on a descriptor that does not fit together.
struct MatmulKernels {
  std::vector<KernelSpec> launches;
  int64_t workspace_bytes = 0;
};
MatmulKernels matmul_kernels(const MatmulDesc&, const Target&, int workspace);

// The same as one launch without a workspace.
KernelSpec matmul_kernel(const MatmulDesc&, const Target&);

// Row-major operands, for the common cases: C[m,n] = A B with A [m,k] (or
// [k,m] if trans_a) in buffer 0, B [k,n] (or [n,k] if trans_b) in buffer 1 and
// C in buffer 2.
MatmulDesc plain_matmul(int64_t m, int64_t n, int64_t k, bool trans_a = false,
                        bool trans_b = false, DType dtype = DType::F32);

}  // namespace moec
