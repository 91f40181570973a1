// Parameter names as Hugging Face's Qwen3-MoE and OLMoE checkpoints have them.
#pragma once
#include <string>
#include <string_view>

namespace moec::moe {

// "model.layers.0.mlp.experts.*.up_proj.weight" for a stack of experts (* is
// the expert); empty where those families have no such parameter.
std::string hf_name(std::string_view parameter);

}  // namespace moec::moe
