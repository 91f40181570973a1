#include "models/moe/hf_names.h"

#include <array>
#include <utility>

namespace moec::moe {

std::string hf_name(std::string_view name) {
  if (name == "embed.weight") return "model.embed_tokens.weight";
  if (name == "norm.weight") return "model.norm.weight";
  if (name == "head.weight") return "lm_head.weight";
  constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(kLayers)) return {};
  auto dot = name.find('.', kLayers.size());
  auto layer = name.substr(0, dot + 1);
  auto rest = name.substr(dot + 1);
  constexpr std::pair<std::string_view, std::string_view> kPrefixes[] = {
      {"norm1.weight", "input_layernorm.weight"},
      {"norm2.weight", "post_attention_layernorm.weight"},
      {"attn.", "self_attn."},
      {"moe.router.weight", "mlp.gate.weight"},
      {"moe.experts.", "mlp.experts.*."},
      {"moe.shared_expert.", "mlp.shared_expert."},
      {"ffn.", "mlp."}};
  for (auto& [ours, theirs] : kPrefixes)
    if (rest.starts_with(ours))
      return "model." + std::string(layer) + std::string(theirs) +
             std::string(rest.substr(ours.size()));
  return {};
}

}  // namespace moec::moe
