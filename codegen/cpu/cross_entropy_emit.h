// The kernels of one chunk of tokens; buffers are numbered as the plan in
// cross_entropy.cpp lists them.
#pragma once
#include <algorithm>
#include <string>

#include "codegen/cpu/cross_entropy.h"
#include "codegen/cpu/lane_tile.h"

namespace moec {

struct CrossEntropyChunk {
  CrossEntropySpec spec;
  int64_t count, panel;  // tokens, and how many stand side by side
  int64_t room;          // tokens of the panels
  int64_t block;         // vocabulary rows of one task

  CrossEntropyChunk(const CrossEntropySpec& s, int64_t tokens, int64_t lanes)
      : spec(s),
        count(tokens),
        panel(lanes),
        room((tokens + lanes - 1) / lanes * lanes) {
    // several tasks for small vocabularies too
    block = std::clamp<int64_t>((s.vocab / 8 + 7) / 8 * 8, 8, 128);
  }
  int64_t panels() const { return room / panel; }
  int64_t padded() const { return room; }
  int64_t blocks() const { return (spec.vocab + block - 1) / block; }

  // Logits are [panel][row][lane]: all rows if they are kept, else a block's.
  bool keeps_logits() const { return spec.mode != CrossEntropyMode::Loss; }
  int64_t logit_rows() const { return keeps_logits() ? spec.vocab : block; }

  // Statistics, in f32: per token its target's logit, the lse in base 2 and
  // the factor of its gradient; then each block's maximum (base 2) and sum.
  enum Row { kTarget, kLse, kScale, kRows };
  int64_t stat(Row r) const { return r * padded(); }
  int64_t maxima() const { return kRows * padded(); }
  int64_t sums() const { return maxima() + blocks() * padded(); }
  int64_t stats_size() const { return sums() + blocks() * padded(); }

  // dX: tasks own half the panels and some channels.
  static constexpr int64_t kChannels = 256;
  int64_t panel_group() const { return (panels() + 1) / 2; }
  // A block of W in tiles of `rows`, a line apart, in f32.
  int64_t dx_pitch(int rows) const { return block * rows + 16; }
  int64_t dx_scratch(int rows) const {
    return (kChannels + rows - 1) / rows * dx_pitch(rows);
  }
  int64_t dx_tasks() const {
    int64_t groups = (panels() + panel_group() - 1) / panel_group();
    return groups * ((spec.dim + kChannels - 1) / kChannels);
  }
};

// Names of kernels, and bytes into each buffer for the tokens from `t0` on.
std::string cross_entropy_key(const CrossEntropyChunk&,
                              const std::string& phase);
std::vector<int64_t> cross_entropy_offsets(
    const CrossEntropySpec&, const std::vector<CrossEntropyBuffer>&,
    int64_t t0);

CrossEntropyPlan cross_entropy_pair_plan(const CrossEntropySpec&,
                                         const Target&);

void emit_cross_entropy_pack(Emit&, const CrossEntropyChunk&);
void emit_cross_entropy_rows(Emit&, const CrossEntropyChunk&);
void emit_cross_entropy_logits(Emit&, const CrossEntropyChunk&);
void emit_cross_entropy_lse(Emit&, const CrossEntropyChunk&);
void emit_cross_entropy_dw(Emit&, const CrossEntropyChunk&, bool first);
void emit_cross_entropy_dx(Emit&, const CrossEntropyChunk&);

}  // namespace moec
