// Parts common to the expert kernels.
#pragma once
#include <functional>
#include <string>

#include "codegen/cpu/lane_tile.h"
#include "codegen/cpu/moe.h"

namespace moec {

inline constexpr int64_t kFeatureBlock = 128;  // features fused at a time
// Slots of one expert in a task, in whole panels of every target: as many as
// leave room for the weights in L2 beside rows of inputs and outputs, since
// each task streams the expert's weights.
int64_t task_slots(const MoeSpec&);

std::string moe_key(const char* kernel, const MoeSpec&);

// Addresses by name, in the order of a launch's buffer list.
struct MoeBuffers {
  Emit& e;
  const std::vector<MoeBuffer>& list;
  V operator()(MoeBuffer) const;
};

// The part of an expert that a task works on. `slot` is the first of `count`
// slots, `panel` the number of the first panel; the expert has `total` slots
// from `begin` on.
struct ExpertTask {
  V expert, slot, count, panel, begin, total;
};
// Slots of one expert in a task and in a panel.
struct SlotCut {
  int64_t task, panel;
};
// Runs `body` if there is a task with number e.task(); at most
// expert_tasks() have one.
void for_expert_task(Emit&, const MoeSpec&, SlotCut, V offsets,
                     const std::function<void(const ExpertTask&)>& body);
int64_t expert_tasks(const MoeSpec&, int64_t task_slots);
// The slots of one expert and the number of its first panel.
ExpertTask whole_expert(Emit&, SlotCut, V offsets, V expert);
// How the f32 kernels cut.
SlotCut slot_cut(const MoeSpec&, const Target&);

// Stores the combine weights of `lanes` slots from the task's `first` on at w
// and by slot, as f32; what is past the `valid` ones is 0 at w.
void load_slot_weights(Emit&, const MoeBuffers&, const ExpertTask&, V first,
                       V valid, int64_t lanes, V w);

// One of an expert's weights in the backward: dW = product source^T, and the
// gradient of its bias. The product has feature_rows rows a panel, of which
// this weight's begin at first_row.
struct ExpertWeight {
  MoeBuffer source, product, weight, bias;
  int64_t feature_rows, first_row;
};
// W_down, W_up and, where the activation is gated, W_gate.
ExpertWeight expert_weight(const MoeSpec&, int i);
int expert_weights(const MoeSpec&);

// Calls f with tiles that cover `valid` lanes of a panel (at most
// wide_panel(), at least 1), and the first lane of each.
void for_lane_tiles(Emit&, V valid,
                    const std::function<void(LaneTile, int lane)>& f);

// Function gather(src, perm, valid, dst): dst[c * panel + lane] = row
// perm[lane] / divisor of src, for lanes() slots of which `valid` exist.
Fn gather_function(Emit&, const char* name, int64_t divisor, int64_t dim);
// Function scatter(src, dst, valid): rows of `dim` from lanes() slots.
Fn scatter_function(Emit&, int64_t dim);

// Launch that sums each token's rows: out[t] = sum_j w[t,j] rows[inv[t,j]],
// unweighted if not `weighted`; then a dropped choice's DWeights become 0.
MoeLaunch moe_combine(const MoeSpec&, bool weighted, const MoeEpilogue&);

// The activation and its derivatives; gate is null if there is none. What is
// `coarse` has a relative error of 1e-4, far below bf16's.
V activate(Emit&, MoeActivation, V gate, V up, bool coarse = false);
struct ActivationGrad {
  V value, by_gate, by_up;
};
ActivationGrad activate_grad(Emit&, MoeActivation, V gate, V up,
                             bool coarse = false);

// The last launch of the f32 backward.
MoeLaunch moe_weights(const MoeSpec&, const Target&);

// The kernels on bf16; moe_forward and moe_backward choose them.
std::vector<MoeLaunch> moe_pair_forward(const MoeSpec&, const MoeEpilogue&);
std::vector<MoeLaunch> moe_pair_backward(const MoeSpec&, const MoeEpilogue&);

}  // namespace moec
