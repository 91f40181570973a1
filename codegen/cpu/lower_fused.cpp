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

using MoePlaces = std::array<Place, size_t(MoeBuffer::PackedDown) + 1>;

// The operands from x on, which both ops share; `first` is x's number.
MoeSpec moe_spec(const Node& n, int first, const Target& t, MoePlaces& places) {
  MoeSpec s;
  const Dims& x = n.operand(first).type().dims;
  const Dims& up = n.operand(first + 5).type().dims;
  s.tokens = x[0], s.dim = x[1];
  s.top_k = n.operand(first + 1).type().dims[1];
  s.experts = up[0], s.hidden = up[1];
  s.activation = parse_moe_activation(n.s("activation"));
  s.bf16 = n.operand(first).type().dtype == DType::BF16;
  s.split = moe_splits(s, t);
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
    for (int b : m.more) {
      l.buffers.push_back(b);
      l.offsets.push_back(0);
    }
    out.launches.push_back(std::move(l));
  }
}

// Room for a row of each slot.
void take_rows(const MoeSpec& s, int buffer, Workspace& w, MoePlaces& places) {
  const i64 size = s.bf16 ? 2 : 4;
  places[size_t(MoeBuffer::Rows)] = {buffer, w.take(size * s.slots() * s.dim)};
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

namespace {

// Where the buffers of an expert op are: its own node's, or those of the
// fusion around it.
struct Home {
  const Node& op;
  std::vector<int> operands, results;  // result -1: nobody reads it
  int workspace;
};

Home own_home(const Node& n) {
  Home h{n, {}, {}, n.num_operands() + n.num_results()};
  for (int i = 0; i < n.num_operands(); ++i) h.operands.push_back(i);
  for (int r = 0; r < n.num_results(); ++r)
    h.results.push_back(n.num_operands() + r);
  return h;
}

Home fusion_home(const Node& n, const ProductFusion& f) {
  Home h{*f.product, f.operands, {}, n.num_operands() + n.num_results()};
  for (int r = 0; r < f.product->num_results(); ++r) {
    int at = f.result_of(r);
    h.results.push_back(at < 0 ? -1 : n.num_operands() + at);
  }
  return h;
}

void move_operands(MoePlaces& places, const Home& home) {
  for (Place& p : places) p.buffer = home.operands[size_t(p.buffer)];
}

// Results in their order; what nobody reads is written to the workspace, but
// for the first where an epilogue takes it.
void place_results(MoePlaces& places, const Home& home, Workspace& w,
                   bool first, const std::vector<MoeBuffer>& results) {
  MOEC_CHECK(results.size() == home.results.size());
  for (size_t r = 0; r < results.size(); ++r) {
    Place& p = places[size_t(results[r])];
    p = {home.results[r], 0};
    if (p.buffer >= 0) continue;
    p.buffer = home.workspace;
    if (r > 0 || first) p.offset = w.take(home.op.type(int(r)).bytes());
  }
}

Lowered lower_forward(const Home& home, const Target& t,
                      const MoeEpilogue& epilogue) {
  MoePlaces places{};
  MoeSpec s = moe_spec(home.op, 0, t, places);
  move_operands(places, home);
  Workspace w;
  const bool alone = !epilogue.then.emit;
  if (alone && is_moe_few(home.op)) {
    places[size_t(MoeBuffer::Y)] = {home.results[0], 0};
    places[size_t(MoeBuffer::Activated)] = {home.workspace,
                                            w.take(4 * s.slots() * s.hidden)};
    Lowered out;
    add_launches(out, moe_few(s, home.op.operand(5).type().dtype, t), places);
    out.workspace_bytes = w.bytes;
    return out;
  }
  place_results(places, home, w, alone, {MoeBuffer::Y, MoeBuffer::Saved});
  take_rows(s, home.workspace, w, places);
  if (s.bf16)
    for (MoeBuffer b :
         {MoeBuffer::PackedUp, MoeBuffer::PackedGate, MoeBuffer::PackedDown})
      places[size_t(b)] = {home.workspace, w.take(moe_packed_bytes(s, b))};
  Lowered out;
  add_launches(out, moe_forward(s, t, epilogue), places);
  out.workspace_bytes = w.bytes;
  return out;
}

Lowered lower_backward(const Home& home, const Target& t,
                       const MoeEpilogue& epilogue) {
  MoePlaces places{};
  MoeSpec s = moe_spec(home.op, 2, t, places);
  places[size_t(MoeBuffer::Dy)].buffer = 0;
  places[size_t(MoeBuffer::Saved)].buffer = 1;
  move_operands(places, home);
  std::vector<MoeBuffer> results{MoeBuffer::Dx, MoeBuffer::DWeights,
                                 MoeBuffer::DUp, MoeBuffer::DDown};
  const bool gated = is_gated(s.activation);
  if (gated) results.push_back(MoeBuffer::DGate);
  if (s.bias) {
    results.push_back(MoeBuffer::DBiasUp);
    results.push_back(MoeBuffer::DBiasDown);
    if (gated) results.push_back(MoeBuffer::DBiasGate);
  }
  Workspace w;
  place_results(places, home, w, !epilogue.then.emit, results);
  take_rows(s, home.workspace, w, places);
  auto take = [&](MoeBuffer b, i64 bytes) {
    places[size_t(b)] = {home.workspace, w.take(bytes)};
  };
  take(MoeBuffer::DHidden, moe_hidden_grad_bytes(s));
  take(MoeBuffer::Activated, moe_activated_bytes(s));
  take(MoeBuffer::SlotWeights, 4 * s.slots());
  Lowered out;
  add_launches(out, moe_backward(s, t, epilogue), places);
  out.workspace_bytes = w.bytes;
  return out;
}

}  // namespace

Lowered lower_moe_ffn(const Node& n, const Target& t) {
  return lower_forward(own_home(n), t, {});
}

Lowered lower_moe_ffn_grad(const Node& n, const Target& t) {
  return lower_backward(own_home(n), t, {});
}

Lowered lower_expert_fusion(const Node& n, const Target& t) {
  ProductFusion f = take_apart(n);
  const i64 dim = f.product->type().dim(-1);
  MoeEpilogue epilogue{f.epilogue(), {}, {}};
  for (int x : f.extras)
    epilogue.extras.push_back(beside_product(x, n.operand(x).type(), dim));
  for (int o : f.outputs)
    epilogue.outputs.push_back({.buffer = n.num_operands() + o,
                                .dtype = n.type(o).dtype,
                                .row_stride = dim});
  Home home = fusion_home(n, f);
  return f.product->op() == Op::MoeFfn ? lower_forward(home, t, epilogue)
                                       : lower_backward(home, t, epilogue);
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
