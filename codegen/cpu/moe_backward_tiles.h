// The products of the first phase of the experts' backward on f32, and what
// becomes of the first one's sums.
#pragma once
#include "codegen/cpu/moe_grad.h"

namespace moec {

struct HiddenTiles {
  Emit& e;
  const MoeSpec& s;
  const int L = e.lanes(), panel = wide_panel(e.target());
  const bool gated = is_gated(s.activation);
  // A row of dO and of dX before it is whole, and of dA' of a tile.
  const int64_t dim = (s.dim + L - 1) / L * L, wide = panel;

  // down(W_down, dO, dA, next_up, next_gate, stride): dA' of some slots and a
  // tile of features; W_down has rows of `ldb`.
  Fn down(LaneTile, const ColumnRun&, int64_t ldb) const;
  // activations(H, dA, w, dw, dH_up, dH_gate, A, n, next_H): of n slots and a
  // vector of features, dw += <dA', A>, dH and A' = w A. H has the slots in the
  // lanes; `features` of the vector exist.
  Fn activations(const ColumnRun&, int64_t features) const;
  // back(dH_up, W_up, dH_gate, W_gate, from, to, ldc, pitch, n, rows, first,
  // next1, next2, stride): to = from (0 if first) + dH W over n features and
  // `rest` more, for `rows` slots and a tile of channels; W has rows of `ldb`.
  // Vectors of features of dH are `pitch` apart.
  Fn back(LaneTile, const ColumnRun&, int64_t ldb, int64_t rest) const;
  // pack(W, dst): `rows` rows of a tile of W, one after the other.
  Fn pack(const ColumnRun&, int64_t rows, int64_t ld) const;

  // Calls f with tiles of at least four rows that cover `rows` of lanes(), and
  // the first row of each.
  void for_row_tiles(V rows, int vectors,
                     const std::function<void(LaneTile, int first)>& f) const;

 private:
  // Of a tile's last vector, null if it is full.
  V mask(const ColumnRun&) const;
};

}  // namespace moec
