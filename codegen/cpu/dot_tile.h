// Building block of the kernels for few rows, which are bound by memory: rows
// of weights stand in memory as they are, the reduction along them, and are
// streamed once; rows of activations stay in the nearest cache.
#pragma once
#include "codegen/cpu/emit.h"

namespace moec {

struct DotTile {
  Vs weights, xs;  // addresses of rows; sum [x][w] of each pair
  DType weight_dtype = DType::F32, x_dtype = DType::F32;
  int64_t length = 0;
  // Addresses of lines to fetch meanwhile, one for each row of weights, at
  // the same place in the row; empty: none.
  Vs ahead = {};
};

// Rows of weights of a tile for `rows` rows of x: so many sums that the
// multiply-adds do not wait for each other, as far as registers allow.
int dot_tile_weights(const Emit&, int64_t rows);

Vs zero_sums(Emit&, const DotTile&);
// acc[x * weights + w] += the products, lane by lane in the order of the
// reduction.
Vs dot_tile(Emit&, const DotTile&, Vs acc);

// Lane i is the sum of the lanes of v[i], the tree of Emit::hsum. Their number
// is a power of two, at most their lanes; a single one gives a scalar.
V sums_of(Emit&, Vs v);

// Address of element `index` (i64) of `dtype`.
V element(Emit&, V base, V index, DType dtype);

// Rows that one task should stream, a multiple of `unit`: some microseconds of
// memory traffic, and enough tasks for the threads to share.
int64_t streamed_rows(int64_t rows, int64_t row_bytes, int64_t unit);

}  // namespace moec
