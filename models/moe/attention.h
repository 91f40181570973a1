// Multi-head attention with grouped key and value heads.
#pragma once
#include "models/moe/ffn.h"

namespace moec::moe {

struct Attention {
  Attention() = default;
  Attention(At at, const Config& c);
  // x [B,T,d] -> [B,T,d]; position t attends to positions <= t.
  Tensor operator()(Tensor x) const;

  i64 heads = 0, kv_heads = 0, d_head = 0, d_value = 0, window = 0;
  double rope_theta = 0;  // 0: no RoPE
  std::string qk_norm;    // none head full
  Linear q, k, v, out;
  dsl::RmsNorm q_norm, k_norm;
  dsl::Dropout dropout;

 private:
  Tensor split(Tensor x, i64 n, i64 width) const;  // [B,n,T,width]
  Tensor positioned(Tensor x, const dsl::RmsNorm& norm) const;
};

}  // namespace moec::moe
