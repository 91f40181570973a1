// The products of the attention's backward on f32 vectors: what a pair of
// blocks of queries and keys computes.
#pragma once
#include "codegen/cpu/attention_emit.h"

namespace moec {

// A row of the P^T and dS^T blocks: padded, so that rows spread over the cache.
inline constexpr int64_t kBlockRow = kQueryBlock + 16;

// Rows of the tallest tiles of keys; two of them are three of the usual ones.
inline constexpr int kTallRows = 12;

// Scratch, in f32: panels of Q^T, dO^T and dQ^T of one block of queries, the
// negatives of log-sum-exp (base 2) and of rowsum(dO O) per query, then one
// block of P^T and dS^T, and of dropout factors; then the copies of rows.
// dO^T and rowsum(dO O) are scaled, which makes dS the factor of K and of Q.
struct BackwardLayout {
  int64_t q, dout, dq, lse, delta, p, ds, keep;
  int64_t k, v, dk, dv, q_rows, dout_rows, end;
  BackwardLayout(const AttentionSpec& s, int64_t panel) {
    const int64_t rows = kQueryBlock;
    q = 0;
    dout = q + rows * s.dim;
    dq = dout + rows * s.value_dim;
    lse = dq + rows * s.dim;
    delta = lse + rows;
    p = delta + rows;
    ds = p + kKeyBlock * kBlockRow;
    keep = ds + kKeyBlock * kBlockRow;
    k = keep + (s.dropout > 0 ? kKeyBlock * panel : 0);
    const int64_t keys = rows_apart(s) ? s.k_len : 0;
    const int64_t queries = rows_apart(s) ? rows : 0;
    v = k + keys * s.dim;
    dk = v + keys * s.value_dim;
    dv = dk + keys * s.dim;
    q_rows = dv + keys * s.value_dim;
    dout_rows = q_rows + queries * s.dim;
    end = dout_rows + queries * s.value_dim;
  }
};

struct BackwardTiles {
  Emit& e;
  const AttentionSpec& in;  // the views of the buffers
  AttentionSpec s = in;     // those of the rows that the products use
  const bool copies = rows_apart(in);
  const int L = e.lanes(), panel = 2 * L, rows = tile_rows(e.target());
  const bool many = e.target().registers >= 32;
  const bool drop = s.dropout > 0;
  const int64_t shift = s.k_len - s.q_len;
  const BackwardLayout at{in, panel};

  // gradients(K, V, Qt, dOt, P, dS, stats, rel, from, to, keep): P = exp2(K Q^T
  // - lse) and dS = P (V dO^T - delta) for tiles of keys
  Fn gradients(int R, int C, bool masked);
  // queries(K, dS, dQt, n): dQt += K^T dS over n keys
  Fn queries(int C);
  // unseen(P, dS, keys): zeros where tiles of keys that are taller than those
  // of gradients reach past the last key that lanes() queries see
  Fn unseen();
  // outer(P, X, C, n, old, F, G, f, g): C[key][channel] += P[key][query]
  // X[query][channel] for R keys, n queries and `cols` vectors of channels,
  // which are the lanes here; the last vector has `last` of them. C is taken
  // for zeros unless `old` is lanes(). Fetches lines at F and G, f and g
  // elements apart, those at G to be written if `write`.
  Fn outer(int R, int cols, int last, int64_t ldx, int64_t ldc, bool write);
  // Negatives of the scaled row sums of dO O and of the log-sum-exp in base 2;
  // lanes past the last query get values that make P zero.
  void statistics(V o, V dout, V count, V lse_in, V lse, V delta);
};

}  // namespace moec
