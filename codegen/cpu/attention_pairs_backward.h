// The backward of attention on pairs: its scratch, and the products and weights
// of a block of keys and a panel of queries.
#pragma once
#include <algorithm>

#include "codegen/cpu/attention_pairs.h"
#include "codegen/cpu/fetch_rows.h"

namespace moec {

inline constexpr int64_t kPairQueries = 128;  // of a block

// What the operands' planes decide: how many keys a block has, and a row of the
// P and dS blocks in bytes, an odd number of cache lines.
struct PairBlockSizes {
  int64_t keys, row;
  explicit PairBlockSizes(int planes)
      : keys(planes > 1 ? 128 : kKeyPanel),
        row(2 * planes * kPairQueries + 64) {}
};

// Queries that are packed at a time: blocks of them that stay in L2, while all
// keys pass. In planes one, so that what is fetched ahead has room there, too.
int64_t group_queries(const AttentionSpec&);

// Scratch, in bytes. Of the keys of a head: K and V unless they stand as they
// are, K^T, and f32 dK and dV. Of a group of queries, in panels of 2 * lanes():
// pairs of Q^T and dO^T and f32 dQ^T; in pairs of rows: Q and dO; log-sum-exp
// (base 2) and rowsum(dO O). Then two strips each of f32 S^T and dP^T, the
// block of P^T and dS^T in rows, of dS^T in pairs of keys, and dropout factors.
struct PairBackwardLayout {
  int64_t k, v, kt, dk, dv, qt, gt, dqt, q, g, lse, delta;
  int64_t s, dp, other, p, ds, pairs, streams, keep, end;
  TransposedKeys transposed;
  PairBackwardLayout(const AttentionSpec& spec, int64_t panel)
      : transposed(pair_padded(spec.k_len), PairSizes(spec).dim,
                   PairBlockSizes(PairSizes(spec).planes).keys,
                   PairSizes(spec).planes) {
    PairSizes n(spec);
    const PairBlockSizes block(n.planes);
    const int64_t keys = pair_padded(spec.k_len), rows = group_queries(spec);
    int64_t at = 0;
    auto take = [&](int64_t bytes) {
      int64_t here = at;
      at += (bytes + 63) / 64 * 64;
      return here;
    };
    k = take(rows_stand(spec, spec.k, spec.dim) ? 0 : keys * n.row_k);
    v = take(rows_stand(spec, spec.v, spec.value_dim) ? 0 : keys * n.row_v);
    kt = take(transposed.bytes);
    dk = take(keys * n.dim * 4), dv = take(keys * n.value_dim * 4);
    qt = take(rows * n.row_k), gt = take(rows * n.row_v);
    dqt = take(rows * n.dim * 4);
    q = take(rows * n.row_k), g = take(rows * n.row_v);
    lse = take(rows * 4), delta = take(rows * 4);
    s = take(kPairStep * panel * 4), dp = take(kPairStep * panel * 4);
    other = take(2 * kPairStep * panel * 4);  // the same again
    p = take(block.keys * block.row), ds = take(block.keys * block.row);
    pairs = take(block.keys * panel * 2 * n.planes);
    streams = take(4 * kFetchBytes);
    keep = take(spec.dropout > 0 ? block.keys * panel * 4 : 0);
    end = at;
  }
};

struct PairBackward {
  Emit& e;
  const AttentionSpec& s;
  const int L = e.lanes(), panel = 2 * L, ld = panel * 4;
  const PairSizes size{s};
  const int planes = size.planes;
  const int64_t block_keys = PairBlockSizes(planes).keys,
                block_row = PairBlockSizes(planes).row;
  const int64_t element = s.bf16 ? 2 : 4;
  const DType dtype = s.bf16 ? DType::BF16 : DType::F32;
  const int64_t together = group_queries(s);
  const int64_t dq_row = key_parts(s).size() > 2 ? s.dim : s.dq.row;
  const PairBackwardLayout at{s, panel};
  const bool drop = s.dropout > 0;
  const int64_t shift = s.k_len - s.q_len;
  // K and V as the products read them, and their rows in bytes
  const bool k_stands = rows_stand(s, s.k, s.dim);
  const bool v_stands = rows_stand(s, s.v, s.value_dim);
  const int64_t row_k = k_stands ? 2 * s.k.row : size.row_k;
  const int64_t row_v = v_stands ? 2 * s.v.row : size.row_v;

  V part(int64_t bytes) { return e.at(e.scratch(), bytes, 1); }

  // What is read soon, or written: of the next group of queries Q, dO and O,
  // and this one's dQ.
  enum Stream { kQ, kGrad, kO, kDq, kStreams };
  FetchedRows rows_of(int i) const {
    if (i == kQ) return {s.q.row, s.dim, together};
    if (i == kDq) return {dq_row, s.dim, together, 1, 0, 2, true};
    return {s.o.row, s.value_dim, together};
  }
  V record(V streams, int i) { return e.at(streams, i * kFetchBytes, 1); }
  std::function<void(V, int)> fetch_from(V streams);
  PairProduct product(V a, int64_t lda, V b, int64_t ldb, V c, int64_t ldc);
  // 2 * lanes() weights side by side, in planes.
  Vs plane_rows(V first, V second);

  // What a strip of keys needs to become P and dS.
  struct Strip {
    V scores;  // and dP after them
    V p, ds, pairs, stats, keep;
    V key;  // its first, of the block
    V rel, left;
    V lse[2] = {}, delta[2] = {};
    bool masked = false;
    V exists = nullptr;  // if it may not
  };
  // P = exp2(c S - lse) and dS = P (dP - delta) of the keys i and i + 1.
  void weigh(const Strip&, V i);
  // The same by a function, masked: beside products it stands in many places,
  // and the masks cost no time there.
  void weigh_beside(const Strip&, V i);
  void load_stats(Strip&);

  // Arguments of the function below, in this order.
  enum Arg {
    kKeysAt,
    kValuesAt,
    kQueriesAt,
    kGradAt,
    kWeights,
    kGradients,
    kPairsAt,
    kStats,
    kTiles,
    kKeep,
    kKeysT,
    kQueryGrad,
    kStreamsAt,
    kRel,
    kLeft,
    kFrom,
    kTo,
    kArgs
  };
  // gradients(...): P and dS of the keys from .. to and of a panel of queries,
  // and from them dQt += K^T dS. The next strip's products come before what is
  // made of this one's, which by then are stored; in planes, that goes on
  // beside them, and the last strip's beside dQt of the others.
  Fn gradients(bool masked);
  // queries(Kt, pairs, dQt, n): dQt += K^T dS over n keys
  Fn queries();
  // outer(P, X, C, n, streams): C[key][channel] += P[key][query]
  // X[query][channel] for kPairStep keys and n queries; here channels are the
  // lanes
  Fn outer(int64_t channels);
};

}  // namespace moec
