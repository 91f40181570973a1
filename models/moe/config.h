// The configuration of a model and its training: the keys of a TOML file.
// docs/guide.md explains each; `moec config` prints the resolved file.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ir/type.h"

namespace moec::moe {

// Which matrices have a bias.
struct Biases {
  bool qkv = false, attn_out = false, ffn = false, router = false, head = false;
  bool operator==(const Biases&) const = default;
};

struct ModelConfig {
  i64 vocab = 0;  // 0: the tokenizer's
  i64 d_model = 0, n_layers = 0, n_heads = 0;
  i64 n_kv_heads = 0;  // 0: n_heads
  i64 d_head = 0;      // 0: d_model / n_heads
  i64 d_value = 0;     // 0: d_head
  i64 d_ff = 0;
  std::string norm = "rms";  // rms layer
  double norm_eps = 1e-6;
  std::string pos = "rope";  // rope learned none
  double rope_theta = 10000;
  i64 window = 0;              // attention window; 0: all before
  std::string ffn = "swiglu";  // of the experts
  std::string dense_ffn;       // of dense blocks; "": ffn
  i64 d_ff_dense = 0;          // 0: d_ff
  Biases bias;
  bool tied = false;
  i64 pad = -1;  // a token whose embedding is not trained; -1: none
  double dropout = 0;
  std::string qk_norm = "none";  // none head full; false is none
  i64 moe_every = 1;             // MoE in layers 0, n, 2n, ...
  std::vector<i64> moe_layers;   // if given, these instead
  bool residual_ffn = true;
  std::string init = "normal";  // normal scaled xavier
};

struct MoeConfig {
  i64 experts = 0, top_k = 0;
  std::string gate = "topk_softmax";
  std::string noise = "none";
  double noise_scale = 1;
  double capacity = 0;  // slots per expert / (tokens * top_k / experts)
  std::string capacity_scope = "row";
  std::string overflow = "drop";
  bool eval_capacity = false;
  double aux_coef = 0;
  bool aux_top1 = false;
  double z_coef = 0;
  i64 shared_experts = 0;
};

struct DataConfig {
  std::vector<std::string> path;  // files or patterns such as *.jsonl
  std::string field = "text";     // of a JSON line
  std::string prompt;  // another member, read before it but not learned
  std::string eos;     // between documents; "": the tokenizer's, "none"
  std::string tokenizer = "char";  // char bytes bpe:N or a file
  double val_fraction = 0.1;
};

struct TrainConfig {
  i64 batch = 0, seq = 0;
  i64 steps = 1000;
  double lr = 3e-4, min_lr = 0;
  i64 warmup = 0;
  std::string schedule = "constant";
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double weight_decay = 0.01;
  std::string decay = "all";  // all matrices
  double clip = 0;
  i64 seed = 0;
  std::string dtype = "f32";
  i64 accumulate = 1;
  i64 eval_every = 0;    // 0: only after the last step
  i64 eval_batches = 0;  // 0: the whole validation part
  i64 save_every = 0;    // 0: only after the last step
  i64 keep = 0;          // step folders; 0: all
};

struct MeshConfig {
  std::map<std::string, i64> axes;
  std::map<std::string, std::string> rules;
};

struct CompileConfig {
  std::string fuse = "on";
  std::string moe = "fused";
  bool remat = false;
};

struct Config {
  ModelConfig model;
  MoeConfig moe;
  DataConfig data;
  TrainConfig train;
  MeshConfig mesh;
  CompileConfig compile;

  bool is_moe_layer(i64 layer) const;
  i64 num_moe_layers() const;
};

// Reads TOML text; `name` is its file in errors. `overrides` are "key=value"
// with dotted keys: a TOML value, else a bare string. The result is resolved:
// every default that depends on another key is filled in. Throws UsageError
// "file:line: ..." for unknown keys, wrong types and settings that contradict
// each other.
Config parse_config(std::string_view text, std::string_view name,
                    const std::vector<std::string>& overrides = {});
Config load_config(const std::filesystem::path& file,
                   const std::vector<std::string>& overrides = {});

// Canonical TOML: every key in a fixed order. Parses back to the same config.
std::string to_toml(const Config& config);

}  // namespace moec::moe
