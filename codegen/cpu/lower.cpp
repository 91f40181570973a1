#include "codegen/cpu/lower.h"

#include <array>

#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/moe.h"
#include "codegen/cpu/row_build.h"
#include "codegen/cpu/scalar_emit.h"
#include "ir/op_def.h"
#include "support/error.h"

namespace moec {
namespace {

using Table = std::array<LowerFn, kNumOps>;

Lowered lower_fusion(const Node& n, const Target& t) {
  const std::string& kind = n.s("kind");
  if (kind == "matmul") return lower_matmul_fusion(n, t);
  if (kind == "experts") return lower_expert_fusion(n, t);
  return lower_rows(n, t);
}

const Table& table() {
  static const Table t = [] {
    Table x{};
    for (int i = 0; i < kNumOps; ++i)
      if (is_scalar_op(Op(i))) x[i] = lower_rows;
    x[int(Op::Fusion)] = lower_fusion;
    for (Op op : {Op::Constant,      Op::Iota,
                  Op::Broadcast,     Op::Slice,
                  Op::DynamicSlice,  Op::Gather,
                  Op::Embedding,     Op::TakeAlong,
                  Op::OneHot,        Op::ArgMax,
                  Op::LogSumExp,     Op::Softmax,
                  Op::SoftmaxGrad,   Op::LayerNorm,
                  Op::LayerNormGrad, Op::RmsNorm,
                  Op::RmsNormGrad,   Op::CausalMask,
                  Op::CrossEntropy,  Op::CrossEntropyGrad,
                  Op::RandomUniform, Op::RandomNormal,
                  Op::Dropout})
      x[int(op)] = lower_rows;
    for (Op op : {Op::Sum, Op::Mean, Op::ReduceMax, Op::ReduceMin})
      x[int(op)] = lower_reduce;
    x[int(Op::Reshape)] = x[int(Op::StopGradient)] = lower_reshape;
    x[int(Op::Transpose)] = lower_transpose;
    x[int(Op::Concat)] = lower_concat;
    x[int(Op::Pad)] = lower_pad;
    x[int(Op::DynamicUpdateSlice)] = lower_dynamic_update_slice;
    x[int(Op::ScatterAdd)] = lower_scatter_add;
    x[int(Op::PutAlong)] = lower_put_along;
    x[int(Op::Bincount)] = lower_bincount;
    x[int(Op::SegmentSum)] = lower_segment_sum;
    x[int(Op::Rope)] = lower_rope;
    x[int(Op::TopK)] = lower_top_k;
    x[int(Op::CapacityKeep)] = lower_capacity_keep;
    x[int(Op::Route)] = lower_route;
    x[int(Op::GlobalNorm)] = lower_global_norm;
    x[int(Op::AdamW)] = lower_adamw;
    x[int(Op::Attention)] = x[int(Op::AttentionGrad)] = lower_attention;
    x[int(Op::CachedAttention)] = lower_cached_attention;
    x[int(Op::Matmul)] = lower_matmul;
    x[int(Op::GroupedMatmul)] = lower_grouped_matmul;
    x[int(Op::GroupedMatmulDw)] = lower_grouped_matmul_dw;
    x[int(Op::MoeFfn)] = lower_moe_ffn;
    x[int(Op::MoeFfnGrad)] = lower_moe_ffn_grad;
    x[int(Op::LinearCrossEntropy)] = lower_linear_cross_entropy;
    x[int(Op::LinearCrossEntropyGrad)] = lower_linear_cross_entropy_grad;
    x[int(Op::LinearCrossEntropyBoth)] = lower_linear_cross_entropy_both;
    return x;
  }();
  return t;
}

}  // namespace

LowerFn cpu_lowering(Op op) { return table()[int(op)]; }

bool cpu_supports(const Node& n, const Target& t) {
  if (!cpu_lowering(n.op())) return false;
  if (n.op() == Op::CausalMask && n.num_operands() > 1) return false;
  if (n.op() == Op::MoeFfn && is_moe_few(n)) return true;
  // the fused kernels are written for f32, most of them for bf16 too
  bool attention = n.op() == Op::Attention || n.op() == Op::AttentionGrad;
  if (attention && n.operand(0).type().dtype == DType::F16) return false;
  const bool loss = n.op() == Op::LinearCrossEntropy ||
                    n.op() == Op::LinearCrossEntropyGrad ||
                    n.op() == Op::LinearCrossEntropyBoth;
  if (loss && n.operand(0).type().dtype == DType::F16) return false;
  const int x = n.op() == Op::MoeFfn ? 0 : n.op() == Op::MoeFfnGrad ? 2 : -1;
  const bool experts =
      x >= 0 && n.operand(x).type().dtype == DType::BF16 && moe_runs_bf16(t);
  if (n.op() != Op::Fusion && !attention && !loss && !experts &&
      has_trait(n, kFused))
    for (Value v : n.operands())
      if (is_float(v.type().dtype) && v.type().dtype != DType::F32)
        return false;
  for (Value v : n.operands())
    if (v.type().dtype == DType::F64) return false;
  for (const Type& t : n.types())
    if (t.dtype == DType::F64) return false;
  return true;
}

Lowered lower_cpu(const Node& n, const Target& t) {
  for (const Type& r : n.types())
    if (r.dtype == DType::F64)
      user_error("{}: f64 runs on --device ref64 only ({})", op_name(n.op()),
                 n.where.scope.empty() ? "top level" : n.where.scope);
  LowerFn f = cpu_lowering(n.op());
  MOEC_CHECK(f, "op {} was not legalised", op_name(n.op()));
  return f(n, t);
}

}  // namespace moec
