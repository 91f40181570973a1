// Flash attention (Dao et al. 2022, 2023), queries in the vector lanes:
// S^T[key][query] = K Q^T, so maxima and sums are lane-wise and P^T is the
// operand of O^T = V^T P^T as it stands. The forward keeps the log-sum-exp
// only; in the backward each (batch, kv head), or a part of its keys where
// there are few, has one owner, and so sums have a fixed order. Key blocks that
// the mask hides are skipped. On bf16 the statistics and all sums are f32, and
// P and dS are rounded for their products. In tile registers f32 operands are
// split (split_f32.h), where sizes are such that it gains.
#pragma once
#include <cstdint>

#include "codegen/cpu/kernel.h"
#include "codegen/cpu/target.h"

namespace moec {

// Element strides of a [batch, head, row, channel] view; channels contiguous.
struct AttentionView {
  int64_t batch = 0, head = 0, row = 0;
};

struct AttentionSpec {
  int64_t batch = 1, heads = 1, kv_heads = 1;
  int64_t q_len = 1, k_len = 1;    // query i stands at i + k_len - q_len
  int64_t dim = 1, value_dim = 1;  // channels of q and k, of v and o
  bool bf16 = false;               // q, k, v, o and their gradients
  bool causal = false;
  int64_t window = 0;  // > 0 needs causal: keys within `window` positions
  double scale = 1;
  double dropout = 0;  // element index in [batch, heads, q_len, k_len]
  int64_t stream = 0;
  // o also for the gradient of the output
  AttentionView q = {}, k = {}, v = {}, o = {}, dq = {}, dk = {}, dv = {};

  // Sets all views to memory in the order [B,H,T,D], or [B,T,H,D].
  void set_layout(bool rows_outside_heads);
};

// Copies keys and values into the order in which the forward reads them, where
// that differs: the bytes are 0 where it does not. Buffers: k, v, packed.
int64_t attention_packed_bytes(const AttentionSpec&, const Target&);
KernelSpec attention_pack(const AttentionSpec&, const Target&);
// Buffers: q, k, v, (key u32[2] if dropout > 0), o, lse f32[B,H,T], and what
// attention_pack wrote if there are such bytes; what it wrote comes from there.
KernelSpec attention_forward(const AttentionSpec&, const Target&);
// Buffers: q, k, v, o, lse, do, (key), dq, dk, dv; where the keys have several
// owners also what each adds to dq, of so many bytes, instead of dq itself,
// which attention_sum then writes. Buffers of that: these sums, dq.
int64_t attention_partial_bytes(const AttentionSpec&);
KernelSpec attention_sum(const AttentionSpec&, const Target&);
KernelSpec attention_backward(const AttentionSpec&, const Target&);

// Pairs (query, key) that the mask lets through, per batch and head.
double attention_pairs(const AttentionSpec&);

}  // namespace moec
