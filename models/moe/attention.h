// Multi-head attention with grouped key and value heads.
#pragma once
#include <vector>

#include "models/moe/ffn.h"

namespace moec::moe {

// Attention with a cache of keys (after RoPE) and values [B,Hkv,L,width]. Rows
// are aligned at their ends: row b's text starts at index pad[b], and what
// stands before it is never seen.
struct KvContext {
  Tensor positions;  // i32[B,T]: place of each token in its row's text
  Tensor mask;       // bool[B,1,T,K]: the indices that each token sees
  Tensor start;      // i32[]: index of the first token; none: a fresh cache
  // Per layer; with `start` the caches before, in any case those after.
  std::vector<Tensor> keys, values;
};

struct Attention {
  Attention() = default;
  Attention(At at, const Config& c);
  // x [B,T,d] -> [B,T,d]; position t attends to positions <= t, or, with a
  // cache, to those that it says. `layer` counts from 0.
  Tensor operator()(Tensor x, KvContext* cache = nullptr, i64 layer = 0) const;

  i64 heads = 0, kv_heads = 0, d_head = 0, d_value = 0, window = 0;
  double rope_theta = 0;  // 0: no RoPE
  std::string qk_norm;    // none head full
  Linear q, k, v, out;
  dsl::RmsNorm q_norm, k_norm;
  dsl::Dropout dropout;

 private:
  Tensor split(Tensor x, i64 n, i64 width) const;  // [B,n,T,width]
  Tensor positioned(Tensor x, const dsl::RmsNorm& norm,
                    const KvContext* cache) const;
};

}  // namespace moec::moe
