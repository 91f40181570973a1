// Routed experts and the fused loss: the kernels of moe.h and cross_entropy.h.
#include <array>

#include "codegen/cpu/cross_entropy.h"
#include "codegen/cpu/lowerings.h"
#include "codegen/cpu/moe.h"
#include "codegen/cpu/moe_few.h"
#include "codegen/cpu/target.h"
#include "passes/few_rows.h"
#include "support/error.h"

namespace moec {
namespace {

// A node's private workspace, cut into 64-byte aligned parts.
struct Workspace {
  i64 bytes = 0;
  i64 take(i64 size) {
    i64 at = bytes;
    bytes += (size + 63) / 64 * 64;
    return at;
  }
};

// Where a kernel's buffer lies: a buffer of the node and an offset in bytes.
struct Place {
  int buffer = 0;
  i64 offset = 0;
};

// ---- routed experts

using MoePlaces = std::array<Place, size_t(MoeBuffer::DBiasDown) + 1>;

// The operands from x on, which both ops share; `first` is x's number.
MoeSpec moe_spec(const Node& n, int first, MoePlaces& places) {
  MoeSpec s;
  const Dims& x = n.operand(first).type().dims;
  const Dims& up = n.operand(first + 5).type().dims;
  s.tokens = x[0], s.dim = x[1];
  s.top_k = n.operand(first + 1).type().dims[1];
  s.experts = up[0], s.hidden = up[1];
  s.activation = parse_moe_activation(n.s("activation"));
  int next = first;
  for (MoeBuffer b :
       {MoeBuffer::X, MoeBuffer::Weights, MoeBuffer::Offsets, MoeBuffer::Perm,
        MoeBuffer::Inverse, MoeBuffer::Up, MoeBuffer::Down})
    places[size_t(b)].buffer = next++;
  const bool gated = is_gated(s.activation);
  if (gated) places[size_t(MoeBuffer::Gate)].buffer = next++;
  s.bias = n.num_operands() > next;
  if (!s.bias) return s;
  places[size_t(MoeBuffer::BiasUp)].buffer = next++;
  places[size_t(MoeBuffer::BiasDown)].buffer = next++;
  if (gated) places[size_t(MoeBuffer::BiasGate)].buffer = next++;
  return s;
}

void add_launches(Lowered& out, const std::vector<MoeLaunch>& launches,
                  const MoePlaces& places) {
  for (const MoeLaunch& m : launches) {
    LoweredLaunch l;
    l.spec = m.spec;
    for (MoeBuffer b : m.buffers) {
      l.buffers.push_back(places[size_t(b)].buffer);
      l.offsets.push_back(places[size_t(b)].offset);
    }
    out.launches.push_back(std::move(l));
  }
}

}  // namespace

bool is_moe_few(const Node& n) {
  const Type &x = n.operand(0).type(), &up = n.operand(5).type();
  auto stored = [&](int i) { return n.operand(i).type().dtype == up.dtype; };
  const bool gated = is_gated(parse_moe_activation(n.s("activation")));
  return x.dtype == DType::F32 &&
         (up.dtype == DType::F32 || up.dtype == DType::BF16) && stored(6) &&
         (!gated || stored(7)) && has_few_rows(n);
}

Lowered lower_moe_ffn(const Node& n, const Target& t) {
  MoePlaces places{};
  MoeSpec s = moe_spec(n, 0, places);
  const int results = n.num_operands(), workspace = results + 2;
  Workspace w;
  places[size_t(MoeBuffer::Y)] = {results, 0};
  if (is_moe_few(n)) {
    places[size_t(MoeBuffer::Activated)] = {workspace,
                                            w.take(4 * s.slots() * s.hidden)};
    Lowered out;
    add_launches(out, moe_few(s, n.operand(5).type().dtype, t), places);
    out.workspace_bytes = w.bytes;
    return out;
  }
  places[size_t(MoeBuffer::Saved)] = {results + 1, 0};
  places[size_t(MoeBuffer::Rows)] = {workspace, w.take(4 * s.slots() * s.dim)};
  Lowered out;
  add_launches(out, moe_forward(s, t), places);
  out.workspace_bytes = w.bytes;
  return out;
}

Lowered lower_moe_ffn_grad(const Node& n, const Target& t) {
  MoePlaces places{};
  MoeSpec s = moe_spec(n, 2, places);
  places[size_t(MoeBuffer::Dy)].buffer = 0;
  places[size_t(MoeBuffer::Saved)].buffer = 1;
  int next = n.num_operands();
  for (MoeBuffer b :
       {MoeBuffer::Dx, MoeBuffer::DWeights, MoeBuffer::DUp, MoeBuffer::DDown})
    places[size_t(b)].buffer = next++;
  const bool gated = is_gated(s.activation);
  if (gated) places[size_t(MoeBuffer::DGate)].buffer = next++;
  if (s.bias) {
    places[size_t(MoeBuffer::DBiasUp)].buffer = next++;
    places[size_t(MoeBuffer::DBiasDown)].buffer = next++;
    if (gated) places[size_t(MoeBuffer::DBiasGate)].buffer = next++;
  }
  MOEC_CHECK(next == n.num_operands() + n.num_results());
  Workspace w;
  auto take = [&](MoeBuffer b, i64 elements) {
    places[size_t(b)] = {next, w.take(4 * elements)};
  };
  take(MoeBuffer::Rows, s.slots() * s.dim);
  take(MoeBuffer::DHidden, s.saved());
  take(MoeBuffer::Activated, s.padded_slots() * s.hidden);
  take(MoeBuffer::SlotWeights, s.slots());
  Lowered out;
  add_launches(out, moe_backward(s, t), places);
  out.workspace_bytes = w.bytes;
  return out;
}

// ---- projection and loss

namespace {

using LossPlaces = std::array<Place, size_t(CrossEntropyBuffer::BiasSums) + 1>;

Lowered loss_launches(const Node& n, const Target& t, CrossEntropyMode mode,
                      int bias, LossPlaces places) {
  const Dims &x = n.operand(0).type().dims, &w = n.operand(1).type().dims;
  CrossEntropySpec s{.tokens = x[0], .vocab = w[0], .dim = x[1]};
  s.mode = mode;
  s.bias = n.num_operands() > bias;
  s.bf16 = n.operand(0).type().dtype == DType::BF16;
  using B = CrossEntropyBuffer;
  places[size_t(B::X)].buffer = 0, places[size_t(B::W)].buffer = 1;
  places[size_t(B::Targets)].buffer = 2;
  places[size_t(B::Bias)].buffer = s.bias ? bias : 0;
  CrossEntropyPlan plan = cross_entropy_plan(s, t);
  const int workspace = n.num_operands() + n.num_results();
  Workspace work;
  for (auto& [b, bytes] : plan.workspaces)
    places[size_t(b)] = {workspace, work.take(bytes)};
  Lowered out;
  for (CrossEntropyLaunch& c : plan.launches) {
    LoweredLaunch l;
    l.spec = std::move(c.spec);
    for (size_t i = 0; i < c.buffers.size(); ++i) {
      const Place& p = places[size_t(c.buffers[i])];
      l.buffers.push_back(p.buffer);
      l.offsets.push_back(p.offset + c.offsets[i]);
    }
    out.launches.push_back(std::move(l));
  }
  out.workspace_bytes = work.bytes;
  return out;
}

}  // namespace

Lowered lower_linear_cross_entropy(const Node& n, const Target& t) {
  using B = CrossEntropyBuffer;
  const int results = n.num_operands();
  LossPlaces p{};
  p[size_t(B::Loss)].buffer = results;
  p[size_t(B::Lse)].buffer = results + 1;
  return loss_launches(n, t, CrossEntropyMode::Loss, 3, p);
}

Lowered lower_linear_cross_entropy_grad(const Node& n, const Target& t) {
  using B = CrossEntropyBuffer;
  const int results = n.num_operands();
  LossPlaces p{};
  p[size_t(B::Lse)].buffer = 3;
  p[size_t(B::Dloss)].buffer = 4;
  p[size_t(B::Dx)].buffer = results;
  p[size_t(B::Dw)].buffer = results + 1;
  p[size_t(B::Dbias)].buffer = n.num_results() > 2 ? results + 2 : results;
  return loss_launches(n, t, CrossEntropyMode::Grad, 5, p);
}

Lowered lower_linear_cross_entropy_both(const Node& n, const Target& t) {
  using B = CrossEntropyBuffer;
  const int results = n.num_operands();
  LossPlaces p{};
  p[size_t(B::Dloss)].buffer = 3;
  p[size_t(B::Loss)].buffer = results;
  p[size_t(B::Lse)].buffer = results + 1;
  p[size_t(B::Dx)].buffer = results + 2;
  p[size_t(B::Dw)].buffer = results + 3;
  p[size_t(B::Dbias)].buffer = n.num_results() > 4 ? results + 4 : results;
  return loss_launches(n, t, CrossEntropyMode::Both, 4, p);
}

}  // namespace moec
