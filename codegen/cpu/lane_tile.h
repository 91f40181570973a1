// Building blocks of the fused kernels, in the tokens-in-lanes orientation:
// a tile is rows x cols vectors, C[row][lane] += A[row][k] * B[k][lane], where
// B is a panel of 2 * lanes() tokens and A is broadcast from plain row-major
// memory along either axis. Sums over lanes never cross lanes, each output is
// the next product's operand, and one copy of a weight serves all directions.
#pragma once
#include <vector>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/target.h"

namespace moec {

struct LaneTile {
  int rows = 8, cols = 2, width = 16;  // width: lanes of one vector
  int lanes() const { return cols * width; }
};

// Rows of a full tile: 8 where 32 registers hold the sums, else 4.
inline int tile_rows(const Target& t) { return t.registers >= 32 ? 8 : 4; }
// Tokens of a panel.
inline int panel_lanes(const Target& t) { return 2 * t.lanes; }

// Whether 512-bit operations run as two halves.
inline bool splits_512(const Target& t) {
  return t.avx512 && t.cpu == "znver4";
}

// Wide panels of tokens, for products whose operands come from L2, which
// limits tiles of 8 x 2: with 32 registers 8 x 3 load least for a sum.
inline int wide_vectors(const Target& t) { return t.registers >= 32 ? 3 : 2; }
inline int wide_panel(const Target& t) { return wide_vectors(t) * t.lanes; }
// The tile of sums over tokens that has `channels` in its lanes: three vectors
// where they divide the channels, else tall and two across.
LaneTile channel_tile(int64_t channels, const Target&);
// The tallest tile that is `vectors` wide, with whole vectors of rows or parts.
LaneTile row_tile(int vectors, const Target&);

// Element (row, k) of the broadcast operand: base[row * row_stride +
// k * step], in f32 elements.
struct Bcast {
  V base;
  int64_t row_stride, step;
};

// Sums are held row by row: acc[row * cols + col].
Vs zero_tile(Emit&, LaneTile);
Vs load_tile(Emit&, LaneTile, V p, int64_t ld, V mask = nullptr);
void store_tile(Emit&, LaneTile, const Vs& acc, V p, int64_t ld,
                V mask = nullptr);

// Lines to fetch meanwhile, one per two steps, `stride` (i64) elements apart.
// Spread out so, a stream of weights hides behind the arithmetic; a burst would
// fill the miss buffers.
struct Prefetch {
  V base, stride;
  int locality = 2;
  bool write = false;
};
// The stride that walks over `floats` during `steps` of a product.
inline int64_t spread(int64_t floats, int64_t steps) {
  return (2 * floats + steps - 1) / steps;
}

// acc += A B over `count` steps; b has row stride `ldb`. The groups of `a`
// share the rows equally. `mask` masks the last column's loads.
Vs tile_product(Emit&, LaneTile, Vs acc, const std::vector<Bcast>& a, V b,
                int64_t ldb, V count, V mask = nullptr,
                const std::vector<Prefetch>& prefetch = {});

// Function pack(src, dst, k, columns): dst[tile][k][rows] = src[k][column], for
// tiles `pitch` apart. The last tile has `rest` columns, if not 0. For a
// Bcast that would walk down columns, of which each line came from L2 twice.
Fn pack_tiles(Emit&, const char* name, int rows, int64_t ld, int64_t pitch,
              int rest);

// Addresses of lanes() rows base + min(r, count - 1) * stride elements.
Vs clamped_rows(Emit&, V base, int64_t stride, V count);
// Transposes `cols` columns of lanes() rows: dst[c * ld + r] = scale *
// rows[r][c]. `ahead` elements after what it reads it fetches.
void pack_rows(Emit&, const Vs& rows, int64_t cols, V dst, int64_t ld,
               V scale = nullptr, int64_t ahead = 0);
// The inverse: row r < count gets factor[r] * src[c * ld + r], where factor
// is a vector of lanes() or null. Rows from `count` on are not touched.
void unpack_rows(Emit&, V src, int64_t ld, int64_t cols, V factor,
                 const std::function<V(int)>& row, V count);

// Copies `count` rows of `width` elements.
void copy_rows(Emit&, V src, int64_t src_row, V dst, int64_t dst_row,
               int64_t width, V count);

// Zeroes `count` f32 elements.
void zero_fill(Emit&, V p, V count);

inline constexpr double kLog2e = 1.44269504088896340736;
inline constexpr double kLn2 = 0.69314718055994530942;
// 1 / (1 + e^-x).
V sigmoid_fast(Emit&, V x);
// 2^x for x < 127; exactly 0 for -inf; relative error 1.5e-7.
V exp2_fast(Emit&, V x);

}  // namespace moec
