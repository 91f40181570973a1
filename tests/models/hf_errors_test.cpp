// Hugging Face folders that are damaged, that lie, or that moec cannot run:
// one error each that names the place.
#include <nlohmann/json.hpp>

#include "models/moe/hf_checkpoint.h"
#include "models/moe/hf_config.h"
#include "runtime/safetensors.h"
#include "support/error.h"
#include "support/file.h"
#include "support/rng.h"
#include "tests/test.h"

namespace moec::moe {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const UsageError& e) {
    return std::string("usage: ") + e.what();
  } catch (const UserError& e) {
    return e.what();
  }
  return "";
}

// A copy of a golden to damage.
struct Copy {
  explicit Copy(const std::string& name) : folder(dir / "hf") {
    fs::copy("tests/models/golden/hf/" + name, folder);
  }
  std::string error() {
    fs::remove_all(dir / "step");
    auto why = error_of([&] { import_hf(folder, dir / "step"); });
    CHECK(fs::exists(dir / "step") == why.empty());
    return why;
  }
  void write(const std::string& name, const std::string& text) {
    write_file_atomic(folder / name, text);
  }
  json config() { return json::parse(read_file(folder / "config.json")); }

  TempDir dir;
  fs::path folder;
};

#define CHECK_PART(text, part)                    \
  do {                                            \
    std::string text_ = text;                     \
    CAPTURE(text_);                               \
    CHECK(text_.find(part) != std::string::npos); \
  } while (0)

TEST_CASE("hf: config.json fields that moec cannot honour are named") {
  struct Case {
    const char *family, *field, *value;
  };
  const Case cases[] = {
      {"mixtral", "model_type", "\"llama\""},
      {"mixtral", "model_type", "7"},
      {"mixtral", "architectures", "[\"MixtralForSequenceClassification\"]"},
      {"mixtral", "hidden_size", "0"},
      {"mixtral", "hidden_size", "-8"},
      {"mixtral", "hidden_size", "8.5"},
      {"mixtral", "hidden_size", "\"8\""},
      {"mixtral", "hidden_size", "1e30"},
      {"mixtral", "hidden_size", "18446744073709551615"},
      {"mixtral", "num_hidden_layers", "5000000"},
      {"mixtral", "vocab_size", "[]"},
      {"mixtral", "num_local_experts", "0"},
      {"mixtral", "num_local_experts", "60000"},
      {"mixtral", "num_experts", "4"},
      {"mixtral", "num_experts_per_tok", "4"},
      {"mixtral", "num_experts_per_tok", "0"},
      {"mixtral", "num_key_value_heads", "3"},
      {"mixtral", "num_attention_heads", "3"},
      {"mixtral", "head_dim", "3"},
      {"mixtral", "rms_norm_eps", "\"small\""},
      {"mixtral", "hidden_act", "\"gelu\""},
      {"mixtral", "sliding_window", "0"},
      {"mixtral", "attention_dropout", "0.1"},
      {"mixtral", "router_jitter_noise", "0.01"},
      {"mixtral", "quantization_config", "{\"bits\": 4}"},
      {"mixtral", "tie_word_embeddings", "1"},
      {"mixtral", "rope_scaling", "{\"type\": \"linear\", \"factor\": 2}"},
      {"mixtral", "rope_parameters",
       "{\"rope_type\": \"yarn\", \"factor\": 4, \"rope_theta\": 1e6}"},
      {"mixtral", "rope_parameters", "{\"partial_rotary_factor\": 0.5}"},
      {"mixtral", "rope_theta", "0"},
      {"mixtral", "layer_types", "[\"full_attention\"]"},
      {"mixtral", "eos_token_id", "\"</s>\""},
      {"qwen3_moe", "attention_dropout", "0.1"},
      {"qwen3_moe", "decoder_sparse_step", "0"},
      {"qwen3_moe", "mlp_only_layers", "1"},
      {"qwen3_moe", "mlp_only_layers", "[-1]"},
      {"qwen3_moe", "norm_topk_prob", "\"yes\""},
      {"olmoe", "clip_qkv", "8.0"},
      {"olmoe", "sliding_window", "16"},
      {"olmoe", "attention_bias", "0"}};
  for (auto& c : cases) {
    Copy copy(c.family);
    auto config = copy.config();
    config[c.field] = json::parse(c.value);
    copy.write("config.json", config.dump());
    if (c.field == std::string("eos_token_id"))
      fs::remove(copy.folder / "generation_config.json");
    auto why = copy.error();
    CAPTURE(c.field);
    CAPTURE(c.value);
    CHECK_PART(why, c.field);
    CHECK(!why.starts_with("usage"));
  }
}

TEST_CASE("hf: null is the default, and both spellings are read") {
  auto read = [](json doc) {
    return read_hf_config(doc.dump(), "config.json").config;
  };
  json c = {{"model_type", "mixtral"}, {"num_key_value_heads", nullptr},
            {"head_dim", nullptr},     {"sliding_window", nullptr},
            {"rope_scaling", nullptr}, {"num_experts", 4}};
  auto m = read(c);
  CHECK(m.model.n_kv_heads == 32);
  CHECK(m.model.d_head == 128);
  CHECK(m.model.window == 0);
  CHECK(m.model.rope_theta == 1e6);
  CHECK(m.moe.experts == 4);
  c.erase("num_key_value_heads");
  CHECK(read(c).model.n_kv_heads == 8);
  c["rope_theta"] = 500;
  CHECK(read(c).model.rope_theta == 500);
  c["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 700.0}};
  CHECK(read(c).model.rope_theta == 700);

  json q = {{"architectures", {"Qwen3MoeForCausalLM"}},
            {"num_hidden_layers", 6},
            {"decoder_sparse_step", 2},
            {"mlp_only_layers", {3, 9}},
            {"sliding_window", 8}};
  m = read(q);
  CHECK(m.model.moe_layers == std::vector<i64>{1, 5});
  CHECK(m.model.window == 0);
  CHECK(m.model.qk_norm == "head");
  CHECK(m.moe.gate == "softmax_topk");
  q["use_sliding_window"] = true;
  CHECK(read(q).model.window == 8);

  json o = {{"model_type", "olmoe"}};
  CHECK(read(o).model.pad == 1);
  o["pad_token_id"] = nullptr;
  CHECK(read(o).model.pad == -1);
  CHECK(read_hf_eos("{\"eos_token_id\": [2, 7]}", "g") ==
        std::vector<int32_t>{2, 7});
  CHECK(read_hf_eos("{\"eos_token_id\": null}", "g").empty());
}

TEST_CASE("hf: JSON that is none, or ambiguous") {
  for (auto file : {"config.json", "generation_config.json"}) {
    Copy copy("mixtral");
    auto text = read_file(copy.folder / file);
    copy.write(file, text.substr(0, text.size() / 2));
    CHECK_PART(copy.error(), "not valid JSON");
    copy.write(file, "{\"vocab_size\": 19, \"vocab_size\": 20}");
    CHECK_PART(copy.error(), "appears twice");
    copy.write(file, "[]");
    CHECK_PART(copy.error(), "must be a JSON object");
    copy.write(file, std::string(100000, '['));
    CHECK_PART(copy.error(), "nested deeper");
    copy.write(file, "{\"a\": \"\xff\"}");
    CHECK_PART(copy.error(), "UTF-8");
  }
  Copy copy("mixtral");
  fs::remove(copy.folder / "config.json");
  CHECK_PART(copy.error(), "config.json: cannot open");
}

// Rewrites the one tensor file of a copy.
void edit(Copy& copy, const std::function<void(std::vector<TensorView>&)>& f) {
  auto path = copy.folder / "model.safetensors";
  std::string bytes = read_file(path);
  write_file_atomic(copy.dir / "before", bytes);
  Safetensors before(copy.dir / "before");
  std::vector<TensorView> views;
  for (auto& t : before.tensors())
    views.push_back({t.name, *t.dtype, t.dims, t.bytes});
  f(views);
  write_safetensors(path, views);
}

TEST_CASE("hf: every tensor is accounted for") {
  auto with = [](const std::function<void(std::vector<TensorView>&)>& f) {
    Copy copy("olmoe");
    edit(copy, f);
    return copy.error();
  };
  auto named = [](std::vector<TensorView>& v, const std::string& name) {
    return std::find_if(v.begin(), v.end(),
                        [&](auto& t) { return t.name == name; });
  };
  auto why = with([&](auto& v) {
    v.erase(named(v, "model.norm.weight"));
    v.erase(named(v, "model.layers.1.mlp.gate.weight"));
  });
  CHECK_PART(why, "missing: ");
  CHECK_PART(why, "model.norm.weight");
  CHECK_PART(why, "model.layers.1.mlp.gate.weight");
  why = with([&](auto& v) {
    auto t = *named(v, "model.norm.weight");
    t.name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    v.push_back(t);
  });
  CHECK_PART(why, "not the model's: model.layers.0.self_attn.rotary_emb");
  why = with([&](auto& v) {
    auto t = named(v, "model.layers.0.mlp.experts.gate_up_proj");
    t->dims = {3, 8, 20};
  });
  CHECK_PART(why, "gate_up_proj is F32[3,8,20] and must be [3,20,8]");
  why = with([&](auto& v) {
    auto t = named(v, "model.norm.weight");
    t->dtype = DType::I32;
  });
  CHECK_PART(why, "model.norm.weight is I32[8] and must be F32, BF16 or F16");
  // Half of the elements, so that the stack of experts mixes types.
  why = with([&](auto& v) {
    auto t = named(v, "lm_head.weight");
    t->dtype = DType::BF16;
    t->bytes = t->bytes.first(t->bytes.size() / 2);
  });
  CHECK(why.empty());
}

TEST_CASE("hf: experts of one stack have one type, a tied head its bytes") {
  Copy copy("mixtral");
  Safetensors before(copy.folder);
  std::vector<TensorView> views;
  for (auto& t : before.tensors())
    views.push_back({t.name, *t.dtype, t.dims, t.bytes});
  auto mixed = views;
  for (auto& v : mixed)
    if (v.name.ends_with("experts.1.w2.weight")) {
      v.dtype = DType::F16;
      v.bytes = v.bytes.first(v.bytes.size() / 2);
    }
  write_safetensors(copy.folder / "model.safetensors", mixed);
  CHECK_PART(copy.error(), "experts.1.w2.weight is F16");

  auto config = copy.config();
  config["tie_word_embeddings"] = true;
  copy.write("config.json", config.dump());
  write_safetensors(copy.folder / "model.safetensors", views);
  CHECK_PART(copy.error(), "lm_head.weight is not model.embed_tokens.weight");
  auto embed = std::find_if(views.begin(), views.end(), [](auto& v) {
    return v.name == "model.embed_tokens.weight";
  });
  for (auto& v : views)
    if (v.name == "lm_head.weight") v.bytes = embed->bytes;
  write_safetensors(copy.folder / "model.safetensors", views);
  CHECK(copy.error() == "");
  // It was written out, so it is given back.
  export_hf(copy.dir / "step", copy.dir / "back");
  Safetensors back(copy.dir / "back");
  CHECK(back.tensors().size() == views.size());
  CHECK(back.find("lm_head.weight"));
}

TEST_CASE("hf: shards that are cut, absent or not what the index says") {
  auto index_name = "model.safetensors.index.json";
  {
    Copy copy("mixtral");
    fs::remove(copy.folder / "model-00002-of-00003.safetensors");
    CHECK_PART(copy.error(), "model-00002-of-00003.safetensors: cannot open");
  }
  {
    Copy copy("mixtral");
    auto shard = "model-00001-of-00003.safetensors";
    auto bytes = read_file(copy.folder / shard);
    for (size_t n : {size_t(0), size_t(7), size_t(100), bytes.size() - 1}) {
      copy.write(shard, bytes.substr(0, n));
      CHECK_PART(copy.error(), shard);
    }
  }
  Copy copy("mixtral");
  auto index = json::parse(read_file(copy.folder / index_name));
  auto changed = index;
  changed["weight_map"]["model.absent.weight"] =
      "model-00001-of-00003.safetensors";
  copy.write(index_name, changed.dump());
  CHECK_PART(copy.error(), "tensor \"model.absent.weight\" is not in");
  changed = index;
  changed["weight_map"].erase("model.norm.weight");
  copy.write(index_name, changed.dump());
  CHECK_PART(copy.error(), "does not list it");
  copy.write(index_name, "{}");
  CHECK_PART(copy.error(), "weight_map");
  fs::remove(copy.folder / index_name);
  CHECK_PART(copy.error(), "holds no model.safetensors");
}

TEST_CASE("hf: sizes that config.json only claims allocate nothing") {
  Copy copy("qwen3_moe");
  auto config = copy.config();
  config["num_hidden_layers"] = 4096;
  config["num_local_experts"] = 65536;
  config["num_experts_per_tok"] = 65536;
  config["vocab_size"] = 1 << 30;
  copy.write("config.json", config.dump());
  CHECK_PART(copy.error(), "needs at least");
}

TEST_CASE("hf: tokenizers of another kind do not hinder") {
  Copy copy("mixtral");
  copy.write("tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}");
  auto report = import_hf(copy.folder, copy.dir / "step");
  REQUIRE(report.notes.size() == 1);
  CHECK_PART(report.notes[0], "carried along but not used");
  CHECK(!fs::exists(copy.dir / "step/tokenizer.json"));
  export_hf(copy.dir / "step", copy.dir / "back");
  CHECK(read_file(copy.dir / "back/tokenizer.json") ==
        read_file(copy.folder / "tokenizer.json"));
  copy.write("tokenizer.json", "{\"model\": ");
  CHECK_PART(copy.error(), "tokenizer.json:");
}

TEST_CASE("hf: a damaged hf.json is an error") {
  HfCarried c;
  c.files["config.json"] =
      read_file("tests/models/golden/hf/olmoe/config.json");
  c.dtype = DType::BF16;
  std::string good = to_json(c);
  auto back = parse_hf_carried(good, "hf.json");
  CHECK(back.dtype == DType::BF16);
  CHECK(back.files == c.files);
  int refused = 0;
  for (size_t n = 0; n + 2 < good.size(); ++n) {
    auto why =
        error_of([&] { parse_hf_carried(good.substr(0, n), "hf.json"); });
    refused += why.starts_with("hf.json:");
  }
  CHECK(refused == int(good.size()) - 2);
  for (auto text : {"{}", "[]", "{\"format\": \"moec-hf-1\"}"})
    CHECK_PART(error_of([&] { parse_hf_carried(text, "hf.json"); }),
               "hf.json:0");
}

// Any damage to config.json gives one error or a config.
TEST_CASE("hf: config.json with bytes changed") {
  for (auto name : {"mixtral", "qwen3_moe", "olmoe"}) {
    auto good = read_file(std::string("tests/models/golden/hf/") + name +
                          "/config.json");
    int rounds = long_tests() ? 50000 : 400, refused = 0;
    for (int i = 0; i < rounds; ++i) {
      auto bad = good;
      for (int k = 0; k < 2; ++k) {
        uint32_t r = random_word(12, uint64_t(i), k);
        bad[r % bad.size()] = char(r >> 24);
      }
      refused += error_of([&] { read_hf_config(bad, "c"); }) != "";
    }
    CHECK(refused > rounds / 4);
  }
}

}  // namespace
}  // namespace moec::moe
