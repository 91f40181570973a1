// Routed experts as fused kernels on f32: rows gathered in the prologue, both
// projections and the activation of a block of features in one task, combined
// by the inverse permutation. Tokens stand in the vector lanes of the forward,
// in the rows of the backward: either way weights are read from plain row-major
// memory, so one copy serves all directions. Saved for the backward are the
// pre-activations alone: the gradient of the combine weights is <dA', A>, as
// in SonicMoE, not <dO, Y>.
//
// Slots (sorted choices) of an expert are cut into panels of wide_panel().
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "codegen/cpu/epilogue.h"
#include "codegen/cpu/kernel.h"
#include "codegen/cpu/target.h"

namespace moec {

enum class MoeActivation : uint8_t {
  Gelu,
  Relu,
  Silu,
  Swiglu,
  Geglu,
  Relu2Glu,
  GeluBilinear
};
MoeActivation parse_moe_activation(const std::string&);
// a = f(gate, up) against a = f(up).
bool is_gated(MoeActivation);

struct MoeSpec {
  int64_t tokens = 1, top_k = 1, experts = 1;
  int64_t dim = 1, hidden = 1;
  MoeActivation activation = MoeActivation::Gelu;
  bool bias = false;
  bool bf16 = false;  // all operands but the combine weights, and all results
  // f32 products of split operands in tile registers (split_f32.h).
  bool split = false;

  int64_t slots() const { return tokens * top_k; }
  int64_t hidden_rows() const {
    return is_gated(activation) ? 2 * hidden : hidden;
  }
  // Bound of the slots of whole panels, each expert's rounded up.
  int64_t padded_slots() const { return slots() + 48 * experts; }
  // f32 elements of the saved pre-activations.
  int64_t saved() const { return padded_slots() * hidden_rows(); }
};

// The buffers that the kernels name. What a problem lacks (gate, biases) may
// be any buffer.
enum class MoeBuffer : uint8_t {
  X,        // [tokens, dim]
  Weights,  // [tokens, top_k]
  Offsets,  // i32 [experts + 1]
  Perm,     // i32 [slots]: choice n * top_k + j of each slot
  Inverse,  // i32 [slots]: slot of each choice, or -1
  Up,
  Gate,  // [experts, hidden, dim]
  Down,  // [experts, dim, hidden]
  BiasUp,
  BiasGate,
  BiasDown,     // [experts, hidden], [experts, dim]
  Saved,        // pre-activations, saved() elements
  Rows,         // workspace [slots, dim]: y or dx of each slot
  Y,            // [tokens, dim]
  Dy,           // [tokens, dim]
  DHidden,      // workspace, moe_hidden_grad_bytes()
  Activated,    // workspace, moe_activated_bytes(): weighted activations
  SlotWeights,  // workspace [slots]
  Dx,
  DWeights,
  DUp,
  DGate,
  DDown,
  DBiasUp,
  DBiasGate,
  DBiasDown,
  PackedUp,  // workspaces: bf16 weights padded to whole tiles
  PackedGate,
  PackedDown,
};

// What becomes of the combined rows (y, or dx) before they are stored;
// without `then.emit`, nothing. The operands are [tokens, dim], their buffers
// numbers of the node's.
struct MoeEpilogue {
  Epilogue then;
  std::vector<MatmulOperand> extras, outputs;
};

struct MoeLaunch {
  KernelSpec spec;
  std::vector<MoeBuffer> buffers;
  std::vector<int> more = {};  // the node's, after those
};

// Bytes of what is saved, of its gradient, of the weighted activations and of
// one packed matrix of all experts, 0 where none is packed.
int64_t moe_saved_bytes(const MoeSpec&);
int64_t moe_hidden_grad_bytes(const MoeSpec&);
int64_t moe_activated_bytes(const MoeSpec&);
int64_t moe_packed_bytes(const MoeSpec&, MoeBuffer);
// Whether the target has kernels for bf16 operands, and whether f32 operands
// are to be split.
bool moe_runs_bf16(const Target&);
bool moe_splits(const MoeSpec&, const Target&);

// y[t] = sum_j w[t,j] expert(x[t]), in two or three launches.
std::vector<MoeLaunch> moe_forward(const MoeSpec&, const Target&,
                                   const MoeEpilogue& = {});
// Gradients of all operands, in three launches.
std::vector<MoeLaunch> moe_backward(const MoeSpec&, const Target&,
                                    const MoeEpilogue& = {});

}  // namespace moec
