#include "codegen/cpu/cross_entropy.h"

#include <fmt/format.h>

#include <algorithm>

#include "codegen/cpu/cross_entropy_emit.h"

namespace moec {

namespace {

using B = CrossEntropyBuffer;

// Aimed at: a share of L3, but not so little that the weights' gradient, which
// each chunk reads and writes, weighs more than the products.
constexpr int64_t kLogitsBytes = 16 << 20;
// Fewer, and splitting f32 and padding cost more than tile registers give.
constexpr int64_t kSplitVocab = 128, kSplitDim = 64;

// Chunks of about equal size, of at most `most` tokens, in whole steps.
int64_t even_chunk(int64_t tokens, int64_t most, int64_t step) {
  const int64_t chunks = std::max<int64_t>(1, (tokens + most - 1) / most);
  const int64_t each = (tokens + chunks - 1) / chunks;
  return std::min(tokens, (each + step - 1) / step * step);
}

const char* mode_name(CrossEntropyMode m) {
  switch (m) {
    case CrossEntropyMode::Loss: return "loss";
    case CrossEntropyMode::Grad: return "grad";
    case CrossEntropyMode::Both: return "both";
  }
  return "";
}

}  // namespace

bool cross_entropy_in_pairs(const CrossEntropySpec& s, const Target& target) {
  return s.bf16 ||
         (target.amx_bf16 && s.vocab >= kSplitVocab && s.dim >= kSplitDim);
}

int64_t cross_entropy_chunk(const CrossEntropySpec& s, const Target& target) {
  const int64_t fits = kLogitsBytes / (s.bf16 ? 2 : 4) / s.vocab;
  if (cross_entropy_in_pairs(s, target))
    return even_chunk(s.tokens, std::clamp<int64_t>(fits / 32 * 32, 256, 1024),
                      32);
  return even_chunk(s.tokens, std::clamp<int64_t>(fits / 48 * 48, 288, 960),
                    48);  // whole panels
}

std::string cross_entropy_key(const CrossEntropyChunk& c,
                              const std::string& phase) {
  const CrossEntropySpec& s = c.spec;
  return fmt::format("cross_entropy {} {} {} t{} v{} d{}{}", mode_name(s.mode),
                     phase, s.bf16 ? "bf16" : "f32", c.count, s.vocab, s.dim,
                     s.bias ? " bias" : "");
}

std::vector<int64_t> cross_entropy_offsets(const CrossEntropySpec& s,
                                           const std::vector<B>& buffers,
                                           int64_t t0) {
  std::vector<int64_t> offsets;
  for (B b : buffers) {
    bool row = b == B::Targets || b == B::Dloss || b == B::Loss || b == B::Lse;
    bool matrix = b == B::X || b == B::Dx;
    offsets.push_back(row      ? 4 * t0
                      : matrix ? (s.bf16 ? 2 : 4) * t0 * s.dim
                               : 0);
  }
  return offsets;
}

CrossEntropyPlan cross_entropy_plan(const CrossEntropySpec& s,
                                    const Target& target) {
  if (cross_entropy_in_pairs(s, target))
    return cross_entropy_pair_plan(s, target);
  const int64_t panel = wide_panel(target);
  const int64_t chunk = cross_entropy_chunk(s, target);
  const bool grads = s.mode != CrossEntropyMode::Loss;
  CrossEntropyPlan plan;
  CrossEntropyChunk first(s, chunk, panel);
  // any buffer where no logits are kept
  plan.workspaces = {{B::Logits, grads ? 4 * first.padded() * s.vocab : 0},
                     {B::Xt, 4 * first.padded() * s.dim},
                     {B::Stats, 4 * first.stats_size()}};

  for (int64_t t0 = 0; t0 < s.tokens; t0 += chunk) {
    const CrossEntropyChunk c(s, std::min(chunk, s.tokens - t0), panel);
    const double product = 2.0 * double(c.count) * double(s.vocab * s.dim);
    const double weights = 4.0 * double(s.vocab * s.dim);
    const double logits = 4.0 * double(c.count * s.vocab);
    auto add = [&](const char* phase, std::vector<B> buffers, int64_t tasks,
                   int64_t scratch, double products, double bytes,
                   std::function<void(Emit&)> emit) {
      CrossEntropyLaunch l;
      l.spec.key = cross_entropy_key(c, phase);
      l.spec.tasks = tasks;
      l.spec.scratch_bytes = scratch;
      l.spec.flops = products * product;
      l.spec.bytes = bytes;
      l.spec.emit = std::move(emit);
      l.offsets = cross_entropy_offsets(s, buffers, t0);
      l.buffers = std::move(buffers);
      plan.launches.push_back(std::move(l));
    };
    add("pack", {B::X, B::Xt}, c.panels(), 0, 0, 8.0 * double(c.count * s.dim),
        [c](Emit& e) { emit_cross_entropy_pack(e, c); });
    if (s.mode == CrossEntropyMode::Grad)
      add("rows", {B::Targets, B::Dloss, B::Lse, B::Stats}, 1, 0, 0,
          12.0 * double(c.count),
          [c](Emit& e) { emit_cross_entropy_rows(e, c); });
    add("logits", {B::W, B::Bias, B::Targets, B::Xt, B::Stats, B::Logits},
        c.blocks(), grads ? 0 : 4 * c.padded() * c.block, 1, weights + logits,
        [c](Emit& e) { emit_cross_entropy_logits(e, c); });
    if (s.mode != CrossEntropyMode::Grad)
      add("lse", {B::Targets, B::Stats, B::Loss, B::Lse, B::Dloss}, c.panels(),
          0, 0, 8.0 * double(c.blocks() * c.count),
          [c](Emit& e) { emit_cross_entropy_lse(e, c); });
    if (!grads) continue;
    const bool first_chunk = t0 == 0;
    add(first_chunk ? "dw first" : "dw",
        {B::X, B::Targets, B::Stats, B::Logits, B::Dw, B::Dbias}, c.blocks(), 0,
        1, 2 * logits + 2 * weights, [c, first_chunk](Emit& e) {
          emit_cross_entropy_dw(e, c, first_chunk);
        });
    add("dx", {B::W, B::Logits, B::Xt, B::Dx}, c.dx_tasks(),
        4 * c.dx_scratch(tile_rows(target)), 1, logits + weights,
        [c](Emit& e) { emit_cross_entropy_dx(e, c); });
  }
  return plan;
}

}  // namespace moec
