// What is known of the Hugging Face families that moec reads and writes: one
// table each. Names and meanings are those of transformers 4 and 5.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

namespace moec::moe {

inline constexpr double kAsAbsent = -1e300;

// A number of config.json and the config key that means the same. 0 of a key
// that moec derives from others (n_kv_heads, d_head) stands for "derived", -1
// of model.pad for none.
struct HfKey {
  std::string_view theirs, ours;
  double absent;            // the value where config.json lacks the field ...
  double null = kAsAbsent;  // ... and where it is null
  std::string_view alias = "";  // another name of the field; one is given
};

// Parameters whose names begin with `ours` (after "layers.N.", unless `ours`
// is a whole name outside of layers). '*' in `theirs` stands for an expert: a
// stack of experts is one tensor each. Of rules that share `theirs`, part p of
// `parts` is the p-th block of rows of every expert.
struct HfName {
  std::string_view ours, theirs;
  int part = 0, parts = 1;
};

enum class HfWindow : uint8_t { None, Length, Switched };

struct HfFamily {
  std::string_view model_type, architecture;
  std::span<const HfKey> keys;
  // Experts as one tensor each (as published), or stacked (as transformers 5
  // holds them, and writes them if asked).
  std::span<const HfName> separate, stacked;
  double rope_theta;         // where config.json gives none
  std::string_view qk_norm;  // model.qk_norm
  bool always_renormalised;  // else norm_topk_prob says
  bool attention_bias;       // has that field
  bool dense_layers;         // has mlp_only_layers and decoder_sparse_step
  HfWindow window;           // sliding_window, and use_sliding_window
  // Fields that change the meaning unless null, false or 0: not supported.
  std::span<const std::string_view> refused;
};

// hidden_act, and model.ffn that means the same.
struct HfActivation {
  std::string_view theirs, ours;
};
// Of equals the first is written.
std::span<const HfActivation> hf_activations();

// Mixtral, Qwen3-MoE, OLMoE.
std::span<const HfFamily> hf_families();
// By model_type; null for another.
const HfFamily* find_hf_family(std::string_view model_type);

}  // namespace moec::moe
