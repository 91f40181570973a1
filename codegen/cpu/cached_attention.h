// Attention of few queries over a cache of keys and values, for generation:
// query t of row b stands at key start[b] + t. Only the keys that it sees are
// read. Tasks are chunks of the cache of one key and value head; each keeps
// its maximum, sum and weighted values, and a second launch combines them in
// order.
#pragma once
#include <cstdint>

#include "codegen/cpu/kernel.h"
#include "codegen/cpu/target.h"

namespace moec {

struct CachedAttentionSpec {
  int64_t batch = 1, queries = 1, heads = 1, kv_heads = 1;
  int64_t length = 1;              // of the cache
  int64_t dim = 1, value_dim = 1;  // channels of q and k, of v and o
  int64_t window = 0;              // 0: all keys before
  double scale = 1;

  int64_t group() const { return heads / kv_heads; }
  int64_t chunks() const;
  // f32 elements of the partial results; 0 if there is one chunk.
  int64_t partial_elements() const;
};

// Buffers: q [B,T,H,D], k [B,L,Hkv,D], v [B,L,Hkv,Dv], start i32[B],
// o [B,T,H,Dv], and partial results in place of o if there are chunks.
KernelSpec cached_attention(const CachedAttentionSpec&, const Target&);
// Buffers: partial results, start, o.
KernelSpec cached_attention_combine(const CachedAttentionSpec&, const Target&);

}  // namespace moec
