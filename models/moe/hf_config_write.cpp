// A config as config.json, where a family can express it.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/moe/config_fields.h"
#include "models/moe/hf_config.h"
#include "support/error.h"

namespace moec::moe {
namespace {

using nlohmann::ordered_json;

double number_of(const Field& f) {
  if (auto* p = std::get_if<i64*>(&f.target)) return double(**p);
  return **std::get_if<double*>(&f.target);
}

[[noreturn]] void refuse(std::string_view key, std::string_view why) {
  user_error("{}: {}; Mixtral, Qwen3-MoE and OLMoE are what can be exported",
             key, why);
}

void require_expressible(const HfFamily& f, const Config& c) {
  auto& m = c.model;
  auto type = [&](std::string_view what) {
    return fmt::format("{} {}", f.model_type, what);
  };
  if (m.norm != "rms") refuse("model.norm", "only \"rms\" can be expressed");
  if (m.pos != "rope") refuse("model.pos", "only \"rope\" can be expressed");
  if (m.d_value != m.d_head)
    refuse("model.d_value",
           "must be model.d_head = " + std::to_string(m.d_head));
  if (m.ffn != "swiglu" && m.ffn != "geglu")
    refuse("model.ffn", "only \"swiglu\" and \"geglu\" can be expressed");
  if (m.bias.ffn) refuse("model.bias", "\"ffn\" cannot be expressed");
  if (m.bias.router) refuse("model.bias", "\"router\" cannot be expressed");
  if (m.bias.head) refuse("model.bias", "\"head\" cannot be expressed");
  if (m.bias.qkv != m.bias.attn_out)
    refuse("model.bias", "only both of \"qkv\" and \"attn_out\"");
  if (m.bias.qkv && !f.attention_bias)
    refuse("model.bias", type("has no biases (model.qk_norm decides)"));
  if (!m.residual_ffn) refuse("model.residual_ffn", "must be true");
  if (c.moe.shared_experts > 0)
    refuse("moe.shared_experts", "cannot be expressed");
  if (c.moe.noise == "softplus")
    refuse("moe.noise", "the weights of \"softplus\" cannot be expressed");
  if (c.moe.eval_capacity && c.moe.capacity > 0)
    refuse("moe.eval_capacity", "capacity cannot be expressed");
  i64 moe_layers = c.num_moe_layers();
  if (moe_layers < m.n_layers) {
    if (!f.dense_layers)
      refuse(c.moe.experts == 0     ? "moe.experts"
             : m.moe_layers.empty() ? "model.moe_every"
                                    : "model.moe_layers",
             type("has experts in all layers (model.qk_norm decides)"));
    if (m.dense_ffn != m.ffn) refuse("model.dense_ffn", "must be model.ffn");
  }
  if (moe_layers > 0 && f.always_renormalised && c.moe.gate == "softmax_topk")
    refuse("moe.gate", type("renormalises (model.qk_norm decides)"));
  if (m.window > 0 && f.window == HfWindow::None)
    refuse("model.window", type("has no window (model.qk_norm decides)"));
  bool has_head_dim = std::ranges::any_of(
      f.keys, [](auto& k) { return k.theirs == "head_dim"; });
  if (!has_head_dim && m.d_head * m.n_heads != m.d_model)
    refuse("model.d_head", type("needs model.d_model / model.n_heads"));
}

// Writes what differs between `was` and `now`; all if `fresh`.
struct Writer {
  ordered_json& doc;
  const HfFamily& family;
  Config was, now;
  bool fresh = false, changed = false;

  void set(std::string_view name, ordered_json value) {
    doc[std::string(name)] = std::move(value);
    changed = true;
  }

  void key(const HfKey& k) {
    // The length of training windows is not the model's.
    bool same = k.ours == "train.seq" || number_of(find_field(was, k.ours)) ==
                                             number_of(find_field(now, k.ours));
    if (same && !fresh) return;
    auto name = k.theirs;
    if (!k.alias.empty() && doc.contains(std::string(k.alias))) name = k.alias;
    Field f = find_field(now, k.ours);
    if (auto* p = std::get_if<i64*>(&f.target))
      set(name, **p < 0 ? ordered_json() : ordered_json(**p));
    else
      set(name, number_of(f));
  }

  bool renormalised(const Config& c) const {
    return c.moe.gate != "softmax_topk";
  }
  std::vector<i64> dense(const Config& c) const {
    std::vector<i64> out;
    for (i64 l = 0; l < c.model.n_layers; ++l)
      if (!c.is_moe_layer(l)) out.push_back(l);
    return out;
  }

  void rope() {
    double theta = now.model.rope_theta;
    if (theta == was.model.rope_theta && !fresh) return;
    bool inside = false;
    for (auto name : {"rope_parameters", "rope_scaling"})
      if (doc.contains(name) && doc[name].is_object()) {
        doc[name]["rope_theta"] = theta;
        inside = changed = true;
      }
    if (!inside) set("rope_theta", theta);
  }

  void window() {
    i64 w = now.model.window;
    if (family.window == HfWindow::None || (w == was.model.window && !fresh))
      return;
    set("sliding_window", w > 0 ? ordered_json(w) : ordered_json());
    if (family.window == HfWindow::Switched) set("use_sliding_window", w > 0);
    if (doc.contains("layer_types")) set("layer_types", {});
  }

  void all() {
    for (auto& k : family.keys) key(k);
    auto &m = now.model, &b = was.model;
    if (fresh || m.tied != b.tied) set("tie_word_embeddings", m.tied);
    if (fresh || m.ffn != b.ffn)
      for (auto& a : hf_activations())
        if (a.ours == m.ffn) {
          set("hidden_act", std::string(a.theirs));
          break;
        }
    if (family.attention_bias && (fresh || m.bias.qkv != b.bias.qkv))
      set("attention_bias", m.bias.qkv);
    if (!family.always_renormalised &&
        (fresh || renormalised(now) != renormalised(was)))
      set("norm_topk_prob", renormalised(now));
    if (family.dense_layers && (fresh || dense(now) != dense(was))) {
      set("mlp_only_layers", dense(now));
      set("decoder_sparse_step", 1);
    }
    rope();
    window();
  }
};

std::string_view torch_name(DType t) {
  return t == DType::BF16  ? "bfloat16"
         : t == DType::F16 ? "float16"
                           : "float32";
}

}  // namespace

const HfFamily& hf_family_of(const Config& c) {
  for (auto& f : hf_families())
    if (f.qk_norm == c.model.qk_norm) {
      require_expressible(f, c);
      return f;
    }
  refuse("model.qk_norm", "cannot be expressed");
}

std::string write_hf_config(const HfFamily& family, const Config& config,
                            std::string_view before, const DType* dtype) {
  ordered_json doc = {{"architectures", {std::string(family.architecture)}},
                      {"model_type", std::string(family.model_type)}};
  bool fresh = before.empty();
  Config was = config;
  if (!fresh) {
    was = read_hf_config(before, "config.json").config;
    doc = ordered_json::parse(before.begin(), before.end());
  }
  Writer w{doc, family, was, config, fresh, fresh};
  w.all();
  if (fresh) {
    for (auto id : {"bos_token_id", "eos_token_id"}) w.set(id, nullptr);
    w.set("attention_dropout", 0.0);
    w.set("initializer_range", 0.02);
    w.set("output_router_logits", false);
    w.set("router_aux_loss_coef", config.moe.aux_coef);
    w.set("use_cache", true);
  }
  if (dtype)
    w.set(doc.contains("dtype") ? "dtype" : "torch_dtype",
          std::string(torch_name(*dtype)));
  return w.changed ? doc.dump(2) + "\n" : std::string(before);
}

}  // namespace moec::moe
