// What the two phases of the experts' backward on f32 share. Slots are rows in
// both, and features or channels stand in the lanes.
#pragma once
#include <string>
#include <vector>

#include "codegen/cpu/moe_emit.h"

namespace moec {

// Tiles of equal width that have columns `first` to `end` - 1 of a matrix in
// their lanes; a single one may be partly empty.
struct ColumnRun {
  int64_t first, end;
  int vectors;

  int64_t width(const Emit& e) const { return int64_t(vectors) * e.lanes(); }
  // Columns of a tile that exist.
  int64_t columns(const Emit& e) const {
    return std::min(end - first, width(e));
  }
};
// As few runs as cover `columns`, as wide as suits the target.
std::vector<ColumnRun> column_runs(int64_t columns, const Target&);

// What the phases pass on, an expert after the other: dH as [features /
// lanes()][slot][lanes()], that of W_up before that of W_gate, and the weighted
// activations as [tile of column_runs()][slot][lanes of the tile].
struct HiddenGrad {
  Emit& e;
  const int64_t features;  // whole vectors
  V dh, a, slots;
  HiddenGrad(Emit&, const MoeSpec&, const MoeBuffers&, const ExpertTask&);
  // dH of a vector of features and a slot of the expert.
  V hidden(int gate, V feature, V slot) const;
  // A' of a tile of features and the expert's first slot.
  V activated(V feature) const { return e.at(a, e.mul(feature, slots)); }
};

// Function collect(src, perm, dst, n): the n slots' rows of src, tile after
// tile of `runs`, as [slot][lanes of the tile], padded by zeros; tiles of one
// vector would be pitch * lanes() apart.
Fn collect_function(Emit&, const std::string& name, const MoeSpec&,
                    const std::vector<ColumnRun>& runs, int64_t pitch);

}  // namespace moec
