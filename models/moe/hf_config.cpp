#include "models/moe/hf_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "models/moe/config_fields.h"
#include "support/error.h"
#include "support/json.h"

namespace moec::moe {
namespace {

using nlohmann::json;

// Longer contexts are opened by --set train.seq=N.
constexpr i64 kMaxSeq = 4096;

struct Reader {
  const json& doc;
  const std::string& where;

  [[noreturn]] void fail(std::string_view name, const json& value,
                         const std::string& why) const {
    auto text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 80) + "...";
    user_error("{}: {} = {}: {}", where, name, text, why);
  }

  static const json& at(const json& o, std::string_view name) {
    static const json null;
    auto it = o.find(std::string(name));
    return it == o.end() ? null : *it;
  }
  const json& at(std::string_view name) const { return at(doc, name); }

  bool flag(std::string_view name, bool absent) const {
    auto& v = at(name);
    if (v.is_null()) return absent;
    if (!v.is_boolean()) fail(name, v, "must be true or false");
    return v.get<bool>();
  }

  i64 integer(std::string_view name, const json& v, i64 min, i64 max) const {
    if (!v.is_number_integer()) fail(name, v, "must be an integer");
    if (v.is_number_unsigned() && v.get<uint64_t>() > uint64_t(max))
      fail(name, v, fmt::format("must be at most {}", max));
    auto n = v.get<i64>();
    if (n < min || n > max)
      fail(name, v, fmt::format("must be from {} to {}", min, max));
    return n;
  }

  double real(std::string_view name, const json& v, double min,
              double max) const {
    if (!v.is_number()) fail(name, v, "must be a number");
    auto d = v.get<double>();
    if (!(d >= min && d <= max))
      fail(name, v, fmt::format("must be from {} to {}", min, max));
    return d;
  }

  void key(Config& c, const HfKey& k) const {
    std::string_view name = k.theirs;
    if (!k.alias.empty()) {
      auto &a = at(k.theirs), &b = at(k.alias);
      if (!a.is_null() && !b.is_null() && a != b)
        fail(k.theirs, a, fmt::format("{} = {}", k.alias, b.dump()));
      if (a.is_null() && !b.is_null()) name = k.alias;
    }
    auto& v = at(name);
    Field f = find_field(c, k.ours);
    if (auto* p = std::get_if<i64*>(&f.target)) {
      bool present = doc.contains(std::string(name));
      double otherwise = present && k.null != kAsAbsent ? k.null : k.absent;
      // 0 is our "derived", not theirs; a model may have no experts.
      bool zero = f.section == "moe" || k.ours == "model.pad";
      i64 min = std::max<i64>(zero ? 0 : 1, i64(f.min));
      **p = v.is_null() ? i64(otherwise) : integer(name, v, min, i64(f.max));
    } else {
      **std::get_if<double*>(&f.target) =
          v.is_null() ? k.absent : real(name, v, f.min, f.max);
    }
  }

  // rope_theta, or the tables that hold it: rope_parameters, rope_scaling.
  double rope_theta(const HfFamily& family) const {
    double theta = family.rope_theta;
    if (auto& v = at("rope_theta"); !v.is_null())
      theta = real("rope_theta", v, 1e-6, 1e12);
    if (auto& v = at("partial_rotary_factor"); !v.is_null() && v != 1)
      fail("partial_rotary_factor", v, "is not supported");
    for (auto name : {"rope_parameters", "rope_scaling"}) {
      auto& table = at(name);
      if (table.is_null()) continue;
      if (!table.is_object()) fail(name, table, "must be a table");
      for (auto& [key, v] : table.items()) {
        std::string full = fmt::format("{}.{}", name, key);
        if (v.is_null()) continue;
        if (key == "rope_theta")
          theta = real(full, v, 1e-6, 1e12);
        else if (key == "partial_rotary_factor" && v == 1)
          continue;
        else if ((key == "rope_type" || key == "type") && v == "default")
          continue;
        else
          fail(full, v,
               "is not supported; positions must be plain rotary ones "
               "(rope_type \"default\")");
      }
    }
    return theta;
  }

  void window(Config& c, const HfFamily& family) const {
    if (family.window == HfWindow::None) return;
    auto& v = at("sliding_window");
    bool on =
        family.window == HfWindow::Length || flag("use_sliding_window", false);
    if (on && family.window == HfWindow::Switched &&
        !doc.contains("sliding_window"))
      c.model.window = 4096;
    else if (on && !v.is_null())
      c.model.window = integer("sliding_window", v, 1, 1'000'000'000);
    // Versions differ in whether the layers before this one have a window.
    if (auto& first = at("max_window_layers");
        c.model.window > 0 && !first.is_null() && first != 0)
      fail("max_window_layers", first,
           "is not supported together with a sliding window");
    auto& types = at("layer_types");
    const char* only = c.model.window ? "sliding_attention" : "full_attention";
    if (types.is_null()) return;
    if (!types.is_array()) fail("layer_types", types, "must be a list");
    for (auto& t : types)
      if (t != only)
        fail("layer_types", types,
             fmt::format("is not supported unless all are \"{}\"", only));
  }

  void layers(Config& c, const HfFamily& family) const {
    if (!family.dense_layers) return;
    i64 n = c.model.n_layers;
    auto& step_value = at("decoder_sparse_step");
    i64 step = step_value.is_null() ? 1
                                    : integer("decoder_sparse_step", step_value,
                                              1, 1'000'000'000);
    std::vector<bool> dense(size_t(n), false);
    auto& list = at("mlp_only_layers");
    if (!list.is_null() && !list.is_array())
      fail("mlp_only_layers", list, "must be a list of layers");
    if (list.is_array())
      for (auto& v : list) {
        // One beyond the last layer matches none, as in transformers.
        i64 l = integer("mlp_only_layers", v, 0, 1'000'000'000);
        if (l < n) dense[size_t(l)] = true;
      }
    std::vector<i64> moe;
    for (i64 l = 0; l < n; ++l)
      if (!dense[size_t(l)] && (l + 1) % step == 0) moe.push_back(l);
    if (moe.empty()) c.moe.experts = 0;
    if (c.moe.experts > 0 && i64(moe.size()) < n) c.model.moe_layers = moe;
  }

  void activation(Config& c) const {
    auto& v = at("hidden_act");
    for (auto& a : hf_activations())
      if (v.is_null() || v == std::string(a.theirs)) {
        c.model.ffn = c.model.dense_ffn = a.ours;
        return;
      }
    fail("hidden_act", v, "is not supported; silu and gelu_pytorch_tanh are");
  }

  void refused(const HfFamily& family) const {
    for (auto name : family.refused) {
      auto& v = at(name);
      if (!v.is_null() && v != false && v != 0)
        fail(name, v, "is not supported");
    }
  }

  const HfFamily& family() const {
    std::string known;
    for (auto& f : hf_families())
      known += fmt::format("{}{}", known.empty() ? "" : ", ", f.model_type);
    auto& type = at("model_type");
    auto& classes = at("architectures");
    const HfFamily* found = nullptr;
    if (type.is_string()) found = find_hf_family(type.get<std::string>());
    if (type.is_null() && classes.is_array() && classes.size() == 1)
      for (auto& f : hf_families())
        if (classes[0] == std::string(f.architecture)) found = &f;
    if (!found)
      fail("model_type", type,
           fmt::format("is not a family that moec knows: {}", known));
    if (!classes.is_null() && (!classes.is_array() || classes.size() != 1 ||
                               classes[0] != std::string(found->architecture)))
      fail("architectures", classes,
           fmt::format("must be [\"{}\"]", found->architecture));
    return *found;
  }

  void sizes(const Config& c) const {
    auto& m = c.model;
    if (m.n_kv_heads && m.n_heads % m.n_kv_heads)
      fail("num_key_value_heads", m.n_kv_heads,
           fmt::format("num_attention_heads = {} is not a multiple of it",
                       m.n_heads));
    if (!m.d_head && m.d_model % m.n_heads)
      fail("num_attention_heads", m.n_heads,
           fmt::format("hidden_size = {} is not a multiple of it", m.d_model));
    auto& width = at("head_dim");
    if (!m.d_head && !width.is_null() && width != m.d_model / m.n_heads)
      fail("head_dim", width, "must be hidden_size / num_attention_heads");
    i64 head = m.d_head ? m.d_head : m.d_model / m.n_heads;
    if (head % 2)
      fail("head_dim", head, "must be even, as rotary positions turn pairs");
    if (c.moe.top_k > c.moe.experts && c.moe.experts > 0)
      fail("num_experts_per_tok", c.moe.top_k,
           fmt::format("is more than the {} experts", c.moe.experts));
    if (c.moe.experts > 0 && c.moe.top_k == 0)
      fail("num_experts_per_tok", c.moe.top_k, "must be at least 1");
  }
};

}  // namespace

HfConfig read_hf_config(std::string_view text, const std::string& where) {
  json doc = parse_json(text, where);
  if (!doc.is_object()) user_error("{}:0: must be a JSON object", where);
  Reader r{doc, where};
  HfConfig out;
  out.family = &r.family();
  auto& family = *out.family;
  auto& c = out.config;
  r.refused(family);
  for (auto& k : family.keys) r.key(c, k);
  c.train.seq = std::min(c.train.seq, kMaxSeq);
  c.train.batch = 1;
  c.model.tied = r.flag("tie_word_embeddings", false);
  c.model.qk_norm = family.qk_norm;
  c.model.rope_theta = r.rope_theta(family);
  if (family.attention_bias)
    c.model.bias.qkv = c.model.bias.attn_out = r.flag("attention_bias", false);
  bool renormalised =
      family.always_renormalised || r.flag("norm_topk_prob", false);
  c.moe.gate = renormalised ? "softmax_topk_renorm" : "softmax_topk";
  if (r.flag("output_router_logits", false))
    if (auto& v = r.at("router_aux_loss_coef"); !v.is_null())
      c.moe.aux_coef = r.real("router_aux_loss_coef", v, 0, 1e12);
  r.activation(c);
  r.window(c, family);
  r.sizes(c);
  r.layers(c, family);
  if (!family.dense_layers && c.moe.experts == 0)
    r.fail(family.model_type == "mixtral" ? "num_local_experts" : "num_experts",
           0, "must be at least 1");
  try {
    c = parse_config(to_toml(c), where + " as a config");
  } catch (const UsageError& e) {
    throw UserError(e.what());  // a file is wrong, not a flag
  }
  return out;
}

std::vector<int32_t> read_hf_eos(std::string_view text,
                                 const std::string& where) {
  json doc = parse_json(text, where);
  if (!doc.is_object()) user_error("{}:0: must be a JSON object", where);
  Reader r{doc, where};
  auto& v = r.at("eos_token_id");
  std::vector<int32_t> out;
  if (v.is_null()) return out;
  for (auto& id : v.is_array() ? v : json::array({v}))
    out.push_back(int32_t(r.integer("eos_token_id", id, INT32_MIN, INT32_MAX)));
  return out;
}

}  // namespace moec::moe
