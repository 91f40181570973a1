#include "models/moe/hf_families.h"

namespace moec::moe {
namespace {

constexpr HfKey kMixtralKeys[] = {
    {"vocab_size", "model.vocab", 32000},
    {"pad_token_id", "model.pad", -1, -1},
    {"hidden_size", "model.d_model", 4096},
    {"intermediate_size", "model.d_ff", 14336},
    {"num_hidden_layers", "model.n_layers", 32},
    {"num_attention_heads", "model.n_heads", 32},
    {"num_key_value_heads", "model.n_kv_heads", 8, 0},
    {"head_dim", "model.d_head", 0, 0},
    {"rms_norm_eps", "model.norm_eps", 1e-5},
    {"num_local_experts", "moe.experts", 8, kAsAbsent, "num_experts"},
    {"num_experts_per_tok", "moe.top_k", 2},
    {"max_position_embeddings", "train.seq", 131072}};

constexpr HfKey kQwen3Keys[] = {
    {"vocab_size", "model.vocab", 151936},
    {"pad_token_id", "model.pad", -1, -1},
    {"hidden_size", "model.d_model", 2048},
    {"intermediate_size", "model.d_ff_dense", 6144},
    {"moe_intermediate_size", "model.d_ff", 768},
    {"num_hidden_layers", "model.n_layers", 24},
    {"num_attention_heads", "model.n_heads", 32},
    {"num_key_value_heads", "model.n_kv_heads", 4, 0},
    {"head_dim", "model.d_head", 0, 0},
    {"rms_norm_eps", "model.norm_eps", 1e-6},
    {"num_experts", "moe.experts", 128, kAsAbsent, "num_local_experts"},
    {"num_experts_per_tok", "moe.top_k", 8},
    {"max_position_embeddings", "train.seq", 32768}};

constexpr HfKey kOlmoeKeys[] = {
    {"vocab_size", "model.vocab", 50304},
    {"pad_token_id", "model.pad", 1, -1},
    {"hidden_size", "model.d_model", 2048},
    {"intermediate_size", "model.d_ff", 2048},
    {"num_hidden_layers", "model.n_layers", 16},
    {"num_attention_heads", "model.n_heads", 16},
    {"num_key_value_heads", "model.n_kv_heads", 0, 0},
    {"rms_norm_eps", "model.norm_eps", 1e-5},
    {"num_experts", "moe.experts", 64, kAsAbsent, "num_local_experts"},
    {"num_experts_per_tok", "moe.top_k", 8},
    {"max_position_embeddings", "train.seq", 4096}};

#define MOEC_HF_COMMON_NAMES                                                   \
  {"embed.weight", "model.embed_tokens.weight"},                               \
      {"norm.weight", "model.norm.weight"}, {"head.weight", "lm_head.weight"}, \
      {"norm1.weight", "input_layernorm.weight"},                              \
      {"norm2.weight", "post_attention_layernorm.weight"},                     \
      {"attn.", "self_attn."}

constexpr HfName kMixtralNames[] = {
    MOEC_HF_COMMON_NAMES,
    {"moe.router.weight", "block_sparse_moe.gate.weight"},
    {"moe.experts.gate_proj.weight", "block_sparse_moe.experts.*.w1.weight"},
    {"moe.experts.up_proj.weight", "block_sparse_moe.experts.*.w3.weight"},
    {"moe.experts.down_proj.weight", "block_sparse_moe.experts.*.w2.weight"}};

constexpr HfName kSeparateNames[] = {
    MOEC_HF_COMMON_NAMES,
    {"moe.router.weight", "mlp.gate.weight"},
    {"moe.experts.", "mlp.experts.*."},
    {"moe.shared_expert.", "mlp.shared_expert."},
    {"ffn.", "mlp."}};

constexpr HfName kStackedNames[] = {
    MOEC_HF_COMMON_NAMES,
    {"moe.router.weight", "mlp.gate.weight"},
    {"moe.experts.gate_proj.weight", "mlp.experts.gate_up_proj", 0, 2},
    {"moe.experts.up_proj.weight", "mlp.experts.gate_up_proj", 1, 2},
    {"moe.experts.down_proj.weight", "mlp.experts.down_proj"},
    {"ffn.", "mlp."}};

#undef MOEC_HF_COMMON_NAMES

constexpr std::string_view kMixtralRefused[] = {
    "attention_dropout", "router_jitter_noise", "attention_bias",
    "quantization_config"};
constexpr std::string_view kQwen3Refused[] = {"attention_dropout",
                                              "quantization_config"};
constexpr std::string_view kOlmoeRefused[] = {
    "attention_dropout", "clip_qkv", "sliding_window", "quantization_config"};

const HfFamily kFamilies[] = {{.model_type = "mixtral",
                               .architecture = "MixtralForCausalLM",
                               .keys = kMixtralKeys,
                               .separate = kMixtralNames,
                               .stacked = kStackedNames,
                               .rope_theta = 1e6,
                               .qk_norm = "none",
                               .always_renormalised = true,
                               .attention_bias = false,
                               .dense_layers = false,
                               .window = HfWindow::Length,
                               .refused = kMixtralRefused},
                              {.model_type = "qwen3_moe",
                               .architecture = "Qwen3MoeForCausalLM",
                               .keys = kQwen3Keys,
                               .separate = kSeparateNames,
                               .stacked = kStackedNames,
                               .rope_theta = 1e4,
                               .qk_norm = "head",
                               .always_renormalised = false,
                               .attention_bias = true,
                               .dense_layers = true,
                               .window = HfWindow::Switched,
                               .refused = kQwen3Refused},
                              {.model_type = "olmoe",
                               .architecture = "OlmoeForCausalLM",
                               .keys = kOlmoeKeys,
                               .separate = kSeparateNames,
                               .stacked = kStackedNames,
                               .rope_theta = 1e4,
                               .qk_norm = "full",
                               .always_renormalised = false,
                               .attention_bias = true,
                               .dense_layers = false,
                               .window = HfWindow::None,
                               .refused = kOlmoeRefused}};

constexpr HfActivation kActivations[] = {{"silu", "swiglu"},
                                         {"swish", "swiglu"},
                                         {"gelu_pytorch_tanh", "geglu"},
                                         {"gelu_new", "geglu"}};

}  // namespace

std::span<const HfActivation> hf_activations() { return kActivations; }
std::span<const HfFamily> hf_families() { return kFamilies; }

const HfFamily* find_hf_family(std::string_view model_type) {
  for (auto& f : kFamilies)
    if (f.model_type == model_type) return &f;
  return nullptr;
}

}  // namespace moec::moe
