// Parts common to the two attention kernels.
#pragma once
#include <string>
#include <vector>

#include "codegen/cpu/attention.h"
#include "codegen/cpu/lane_tile.h"

namespace moec {

inline constexpr int64_t kKeyBlock = 128;
inline constexpr int64_t kQueryBlock = 128;
// Stands for -inf in maxima, so that no difference of two of them is NaN.
inline constexpr double kLowest = -1e30;

std::string attention_key(const char* kernel, const AttentionSpec&);

// Which keys of a block a panel of queries meets. Counts from the block's
// first key `kb`, all multiples of the tile's rows or the block's end.
struct KeyRange {
  Vs ends;  // keys that each vector of queries sees, the last one most
  V whole;  // keys up to which no causal mask is needed
  V low;    // keys up to which the window's mask is needed
};
KeyRange key_range(Emit&, const AttentionSpec&, int vectors, V q0, V kb,
                   V block);

// Calls tiles(rows, cols, masked, from, to) for the ranges of key tiles.
using TileRange =
    std::function<void(int rows, int cols, bool masked, V from, V to)>;
void for_key_tiles(Emit&, const AttentionSpec&, const KeyRange&,
                   const TileRange& tiles);

// Lane mask of key `rel` against a vector of queries whose first has number
// 0: rel = key - (query 0's position). i64 scalar.
V lane_mask(Emit&, const AttentionSpec&, V rel, int col);

// Function keep(factors, first, n, key0, key1): factors[k * ld + lane] = 0 or
// 1 / (1 - dropout) for n keys and lanes() queries; `first` is the element
// index of lane 0 and key 0. Where k_len % 64 == 0 so must be first's key, and
// n is rounded up to 64.
Fn dropout_factors(Emit&, const AttentionSpec&, int64_t ld);

// Functions pack(src, dst, count) and unpack(src, factor, dst, count) of one
// vector of a panel; strides and factors are fixed by the arguments.
Fn pack_function(Emit&, const std::string& name, int64_t panel, int64_t stride,
                 int64_t cols, double scale);
Fn unpack_function(Emit&, const std::string& name, int64_t panel,
                   int64_t stride, int64_t cols);

// Where the parts of the keys that have different owners in the backward begin,
// and the end. A handful of heads with many keys has several, for more threads
// to work; a part costs the packing of all queries anew, so that more heads
// have one. Under a causal mask the first parts are shorter: more queries see
// them.
std::vector<int64_t> key_parts(const AttentionSpec&);
// The part of the task, and the first and last of its keys.
struct KeyPart {
  V number, low, high;
};
KeyPart key_part(Emit&, const AttentionSpec&, V task);
// What part `number` adds to dq of head `bh`: f32 rows of s.dim, padded to a
// multiple of 32.
V partial_rows(Emit&, const AttentionSpec&, V base, V number, V bh);

// Whether rows of one head lie so far apart, and not side by side, that they
// share few sets of the cache: copies of them then pay.
bool rows_apart(const AttentionSpec&);

// The kernels on bf16: what they emit and the scratch they need.
int64_t pairs_packed_bytes(const AttentionSpec&);
void emit_pairs_pack(KernelSpec&, const AttentionSpec&);
void emit_pairs_forward(KernelSpec&, const AttentionSpec&, const Target&);
void emit_pairs_backward(KernelSpec&, const AttentionSpec&, const Target&);
// The kernels on split f32: whether they gain, and what they emit. Splitting,
// and zeros up to whole steps, cost what `least` products of a query's or a
// key's row gain.
bool splits_f32(const AttentionSpec&, const Target&, double least);
inline bool splits_forward(const AttentionSpec& s, const Target& t) {
  return splits_f32(s, t, 12500);
}
inline bool splits_backward(const AttentionSpec& s, const Target& t) {
  return splits_f32(s, t, 16000);
}
void emit_split_forward(KernelSpec&, const AttentionSpec&);

// Keys and values come from beyond L2 when a head is new, and the few rows of a
// tile are too few misses at a time. So the tile at `key` fetches one line of
// each of `span` rows, where the product over s.dim channels has room for them;
// the tiles of a span together fetch all lines. `next`: of the span after the
// tile's own, and into L1.
Prefetch fetch_ahead(Emit&, const AttentionSpec& s, V base, V key,
                     const AttentionView&, int64_t channels, bool next);

V floor_to(Emit&, V n, int64_t multiple);  // a power of two; any sign
V ceil_to(Emit&, V n, int64_t multiple);
V clamp(Emit&, V n, V low, V high);

}  // namespace moec
