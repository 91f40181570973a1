// Parts common to the attention kernels on pairs of bf16, in which f32 operands
// come split in planes (split_f32.h).
#pragma once
#include <algorithm>

#include "codegen/cpu/attention_emit.h"
#include "codegen/cpu/pair_tile.h"
#include "codegen/cpu/split_f32.h"

namespace moec {

// Rows of keys and channels as the kernels hold them, padded; bytes.
struct PairSizes {
  int planes;
  int64_t dim, value_dim;  // padded channels
  int64_t row_k, row_v;    // of K and V as they stand
  int64_t query_rows;      // padded queries
  explicit PairSizes(const AttentionSpec& s)
      : planes(s.bf16 ? 1 : kSplitPlanes),
        dim(pair_padded(s.dim)),
        value_dim(pair_padded(s.value_dim)),
        row_k(2 * planes * dim),
        row_v(2 * planes * value_dim),
        query_rows(pair_padded(s.q_len)) {}
};
// Transposed keys come in blocks of kKeyPanel, one after the other, each
// [channel][key]: rows across all keys would lie a page apart. A row has an odd
// number of cache lines, so that neighbouring rows spread over the cache.
inline constexpr int64_t kKeyPanel = 256;
inline int64_t transposed_row(int64_t keys, int planes) {
  return (keys * planes / 32 | 1) * 64;
}
struct TransposedKeys {
  int64_t row, block, bytes;
  TransposedKeys(int64_t keys, int64_t channels, int64_t panel = kKeyPanel,
                 int planes = 1) {
    row = transposed_row(std::min(keys, panel), planes);
    block = channels * row;
    bytes = (keys + panel - 1) / panel * block;
  }
};

// Whether rows of keys can be an operand A where they lie: whole steps of them,
// and so near each other that they spread over the cache.
inline bool rows_stand(const AttentionSpec& s, const AttentionView& v,
                       int64_t channels) {
  return s.bf16 && s.k_len % kPairStep == 0 && channels % kPairStep == 0 &&
         v.row <= 512;
}

// What one (batch, kv head) has in the workspace of the forward: K, unless it
// stands as it is, then V^T. `row` is a row of K in bytes, wherever it lies. Of
// V^T each block of keys comes in the order in which products read it: [strip
// of kPairStep channels][step of kPairStep keys][channel][key].
struct PackedKeys {
  static constexpr int64_t kStep = kPairStep * kPairStep * 2;  // bytes
  bool as_it_stands;
  int64_t keys, row, v, bytes;
  // Of a block that is met at once: so many that outputs are rarely taken up
  // again, and weights of a panel stay in L2, but dropout factors in L1.
  int64_t block_keys;
  int64_t strip, block;  // of V^T, in bytes
  explicit PackedKeys(const AttentionSpec& s)
      : as_it_stands(rows_stand(s, s.k, s.dim)),
        keys(pair_padded(s.k_len)),
        row(as_it_stands ? 2 * s.k.row : PairSizes(s).row_k),
        block_keys(std::min<int64_t>(keys, s.dropout > 0 ? 256 : 2048)) {
    v = as_it_stands ? 0 : keys * row;
    strip = block_keys / kPairStep * kStep;
    block = strip * PairSizes(s).value_dim / kPairStep;
    bytes = v + (keys + block_keys - 1) / block_keys * block;
  }
};

// Which keys of a block a panel of 2 * lanes() queries meets, counted from the
// block's first, in multiples of kPairStep.
struct PairRange {
  V first;  // the first lane sees none before
  V low;    // up to here the window's mask is needed
  V whole;  // up to here no causal mask is
  V end;    // the last lane sees none from here on
};
// `rel`: the block's first key less the position of the panel's first query;
// `left`: keys from the block's first on; `room`: the block's size.
PairRange pair_range(Emit&, const AttentionSpec&, V rel, V left, int64_t room);

// Whether lanes() queries see key `k` of the block.
V pair_seen(Emit&, const AttentionSpec&, V k, V rel, V left, int col);
// The largest of `best` and the scores of rows from .. to, a multiple of 8, by
// query; ld in bytes. If `first` is not null, row 0 is this key of the block
// and what a query does not see becomes -inf.
Vs pair_maxima(Emit&, const AttentionSpec&, V scores, int64_t ld, V from, V to,
               Vs best, V first, V rel, V left);

// Of `steps` of a product, so many do a share of the work beside it.
inline int beside_steps(int64_t steps) {
  return steps >= 4 ? 4 : steps >= 2 ? 2 : 1;
}

// Functions pack(rows, count, from, dst) of lanes() rows and unpack(src,
// factor, dst, count) of as many columns, as pack_columns and unpack_columns.
Fn pack_columns_function(Emit&, int64_t stride, int64_t channels, bool negate,
                         int planes);
Fn unpack_columns_function(Emit&, const std::string& name, int64_t stride,
                           int64_t channels, const std::vector<int>& row_of,
                           int planes);

// scale * log2(e), positive: a negative scale's sign goes into q.
double pair_factor(const AttentionSpec&);

}  // namespace moec
