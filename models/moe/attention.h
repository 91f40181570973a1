// Multi-head attention with grouped key and value heads.
#pragma once
#include <vector>

#include "models/moe/ffn.h"

namespace moec::moe {

// Attention with a cache of keys (after RoPE) and values [B,L,Hkv,width]: each
// row's text stands from index 0 on, and what follows its end is never seen.
struct KvContext {
  // i32[B]: index of each row's first token. None: the text begins now, so
  // that the tokens see each other alone.
  Tensor start;
  Tensor positions;  // i32[B,T] of the tokens, with `start`
  // Per layer: the caches before, and then those after.
  std::vector<Tensor> keys, values;
};

struct Attention {
  Attention() = default;
  Attention(At at, const Config& c);
  // x [B,T,d] -> [B,T,d]; position t attends to positions <= t, those in the
  // cache included. `layer` counts from 0.
  Tensor operator()(Tensor x, KvContext* cache = nullptr, i64 layer = 0) const;

  i64 heads = 0, kv_heads = 0, d_head = 0, d_value = 0, window = 0;
  double rope_theta = 0;  // 0: no RoPE
  std::string qk_norm;    // none head full
  Linear q, k, v, out;
  dsl::RmsNorm q_norm, k_norm;
  dsl::Dropout dropout;

 private:
  Tensor split(Tensor x, i64 n, i64 width) const;  // [B,T,n,width]
  Tensor positioned(Tensor x, const dsl::RmsNorm& norm,
                    const KvContext* cache) const;
};

}  // namespace moec::moe
