// What the files of lowerings share.
#pragma once
#include <utility>

#include "codegen/cpu/lower.h"
#include "codegen/cpu/rows.h"

namespace moec {

// Collects the launches of one node.
class RowLowering {
 public:
  RowLowering(const Node& n, const Target& t)
      : target_(t),
        num_buffers_(n.num_operands() + n.num_results()),
        workspace_buffer_(num_buffers_) {}

  // Launches that compute the program; its buffers are the node's.
  void add(RowProgram);
  // A kernel over the node's buffers as they are numbered.
  void launch(KernelSpec);
  // Room in the node's workspace; strides are left empty.
  Access workspace(DType, i64 elements);
  Lowered take() { return std::move(out_); }

 private:
  void columns(RowProgram);
  bool split_rows(const RowProgram&);
  void finish_columns(const RowProgram&, const RowStore&, const Access& partial,
                      i64 blocks);

  const Target& target_;
  int num_buffers_, workspace_buffer_;
  Lowered out_;
};

Lowered lower_rows(const Node&, const Target&);
Lowered lower_reduce(const Node&, const Target&);
Lowered lower_reshape(const Node&, const Target&);
Lowered lower_transpose(const Node&, const Target&);
Lowered lower_concat(const Node&, const Target&);
Lowered lower_pad(const Node&, const Target&);
Lowered lower_dynamic_update_slice(const Node&, const Target&);
Lowered lower_scatter_add(const Node&, const Target&);
Lowered lower_put_along(const Node&, const Target&);
Lowered lower_bincount(const Node&, const Target&);
Lowered lower_segment_sum(const Node&, const Target&);
Lowered lower_rope(const Node&, const Target&);
Lowered lower_top_k(const Node&, const Target&);
Lowered lower_capacity_keep(const Node&, const Target&);
Lowered lower_route(const Node&, const Target&);
Lowered lower_global_norm(const Node&, const Target&);
Lowered lower_adamw(const Node&, const Target&);
Lowered lower_attention(const Node&, const Target&);
Lowered lower_cached_attention(const Node&, const Target&);
Lowered lower_matmul(const Node&, const Target&);
Lowered lower_grouped_matmul(const Node&, const Target&);
Lowered lower_grouped_matmul_dw(const Node&, const Target&);

// Fusions of kind "matmul" and "experts".
Lowered lower_matmul_fusion(const Node&, const Target&);
Lowered lower_expert_fusion(const Node&, const Target&);

Lowered lower_moe_ffn(const Node&, const Target&);
// Few tokens without a backward: weights may be bf16 then.
bool is_moe_few(const Node&);
Lowered lower_moe_ffn_grad(const Node&, const Target&);
Lowered lower_linear_cross_entropy(const Node&, const Target&);
Lowered lower_linear_cross_entropy_grad(const Node&, const Target&);
Lowered lower_linear_cross_entropy_both(const Node&, const Target&);

}  // namespace moec
