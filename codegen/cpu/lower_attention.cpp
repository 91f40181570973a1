// Attention ops as the flash kernels of attention.h, and over caches as those
// of cached_attention.h.
#include "codegen/cpu/attention.h"
#include "codegen/cpu/cached_attention.h"
#include "codegen/cpu/lowerings.h"

namespace moec {
namespace {

AttentionSpec spec_of(const Node& n) {
  const Type &q = n.operand(0).type(), &k = n.operand(1).type(),
             &v = n.operand(2).type();
  bool rows_outside = n.s("layout") == "bthd";
  int head = rows_outside ? 2 : 1, row = rows_outside ? 1 : 2;
  AttentionSpec s;
  s.batch = q.dims[0];
  s.heads = q.dims[head];
  s.kv_heads = k.dims[head];
  s.q_len = q.dims[row];
  s.k_len = k.dims[row];
  s.dim = q.dims[3];
  s.value_dim = v.dims[3];
  s.bf16 = q.dtype == DType::BF16;
  s.causal = n.b("causal");
  s.window = n.i("window");
  s.scale = n.f("scale");
  s.dropout = n.f("dropout");
  s.stream = n.i("stream");
  s.set_layout(rows_outside);
  return s;
}

}  // namespace

Lowered lower_attention(const Node& n, const Target& t) {
  AttentionSpec s = spec_of(n);
  bool backward = n.op() == Op::AttentionGrad;
  int fixed = backward ? 6 : 3;
  LoweredLaunch l;
  l.spec = backward ? attention_backward(s, t) : attention_forward(s, t);
  for (int i = 0; i < fixed; ++i) l.buffers.push_back(i);
  // A key without dropout is not read.
  if (s.dropout > 0) l.buffers.push_back(fixed);
  for (int r = 0; r < n.num_results(); ++r)
    l.buffers.push_back(n.num_operands() + r);
  Lowered out;
  const int workspace = n.num_operands() + n.num_results();
  out.workspace_bytes =
      backward ? attention_partial_bytes(s) : attention_packed_bytes(s, t);
  if (out.workspace_bytes && backward) {
    l.buffers.push_back(workspace);
    out.launches.push_back(std::move(l));
    const int dq = n.num_operands();
    out.launches.push_back({attention_sum(s, t), {workspace, dq}, {}});
    return out;
  }
  if (out.workspace_bytes) {
    out.launches.push_back({attention_pack(s, t), {1, 2, workspace}, {}});
    l.buffers.push_back(workspace);
  }
  out.launches.push_back(std::move(l));
  return out;
}

Lowered lower_cached_attention(const Node& n, const Target& t) {
  const Dims &q = n.operand(0).type().dims, &k = n.operand(1).type().dims;
  CachedAttentionSpec s;
  s.batch = q[0], s.queries = q[1], s.heads = q[2], s.dim = q[3];
  s.length = k[1], s.kv_heads = k[2];
  s.value_dim = n.operand(2).type().dims[3];
  s.window = n.i("window");
  s.scale = n.f("scale");
  const int result = 4, workspace = 5;
  const bool partial = s.partial_elements() > 0;
  Lowered out;
  out.workspace_bytes = s.partial_elements() * 4;
  LoweredLaunch attend;
  attend.spec = cached_attention(s, t);
  attend.buffers = {0, 1, 2, 3, partial ? workspace : result};
  out.launches.push_back(std::move(attend));
  if (!partial) return out;
  LoweredLaunch combine;
  combine.spec = cached_attention_combine(s, t);
  combine.buffers = {workspace, 3, result};
  out.launches.push_back(std::move(combine));
  return out;
}

}  // namespace moec
