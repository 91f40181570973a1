// Checkpoints that transformers wrote (scripts/hf_peer.py): what moec makes of
// them, and what it gives back.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "models/moe/generation.h"
#include "models/moe/hf_checkpoint.h"
#include "models/moe/hf_config.h"
#include "models/moe/model_io.h"
#include "models/moe/trainer.h"
#include "support/error.h"
#include "support/file.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {
namespace fs = std::filesystem;

const fs::path kGoldens = "tests/models/golden/hf";
const char* const kFamilies[] = {"mixtral", "qwen3_moe", "olmoe"};

template <class T>
std::vector<T> values(const Safetensors& file, const std::string& name) {
  auto* t = file.find(name);
  REQUIRE(t);
  std::vector<T> out(t->bytes.size() / sizeof(T));
  std::memcpy(out.data(), t->bytes.data(), t->bytes.size());
  return out;
}

// The largest difference over the root mean square.
double off(std::span<const float> got, const std::vector<float>& want) {
  double worst = 0, square = 0;
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    worst = std::max(worst, std::abs(double(got[i]) - want[i]));
    square += double(want[i]) * want[i];
  }
  return worst / std::sqrt(square / double(want.size()) + 1e-20);
}

struct Opened {
  explicit Opened(const fs::path& step)
      : opened(open_model(step)), model(opened.config), engine({}) {
    load_parameters(state, model.parameters(), opened);
  }
  Function function(const char* name, i64 rows, i64 seq) {
    auto f = engine.compile(make_function(model, name, rows, seq));
    f.bind(state);
    return f;
  }
  OpenedModel opened;
  Transformer model;
  State state;
  Engine engine;
};

// Same names, types, shapes and bytes, however many files they are in.
void same_tensors(const fs::path& a, const fs::path& b) {
  Safetensors x(a), y(b);
  REQUIRE(x.tensors().size() == y.tensors().size());
  for (size_t i = 0; i < x.tensors().size(); ++i) {
    auto &s = x.tensors()[i], &t = y.tensors()[i];
    CAPTURE(s.name);
    CHECK(s.name == t.name);
    CHECK(s.dtype_text == t.dtype_text);
    CHECK(s.dims == t.dims);
    CHECK(std::ranges::equal(s.bytes, t.bytes));
  }
}

TEST_CASE("hf: logits, loss and gradients are PyTorch's") {
  for (std::string name : kFamilies) {
    CAPTURE(name);
    TempDir dir;
    auto report = import_hf(kGoldens / name, dir / "step");
    CHECK(report.family == name);
    CHECK(report.notes.empty());
    Safetensors want(kGoldens / (name + ".safetensors"));
    Opened m(dir / "step");
    for (auto function : {"logits", "grad"}) {
      auto f = m.function(function, 2, 7);
      std::ranges::copy(values<int32_t>(want, "tokens"),
                        f.input<int32_t>("tokens").begin());
      if (function == std::string("grad"))
        std::ranges::copy(values<int32_t>(want, "targets"),
                          f.input<int32_t>("targets").begin());
      f.run();
      for (auto& s : f.outputs()) {
        if (s.name == "ce") continue;
        CAPTURE(s.name);
        double limit = s.name == "logits" ? 2e-5 : 1e-4;
        CHECK(off(f.output<float>(s.name), values<float>(want, s.name)) <
              limit);
      }
    }
  }
}

TEST_CASE("hf: greedy continuations are transformers', eos included") {
  for (std::string name : kFamilies) {
    CAPTURE(name);
    TempDir dir;
    import_hf(kGoldens / name, dir / "step");
    Safetensors want(kGoldens / (name + ".safetensors"));
    Opened m(dir / "step");
    auto tokens = values<int32_t>(want, "tokens");
    tokens.resize(5);
    GenerateOptions o;
    o.sampling.temperature = 0;
    o.max_tokens = 12;
    o.eos = hf_eos(m.opened.hf.value());
    Generator g(m.engine, m.model, m.state);
    auto ids = g.generate({tokens}, o)[0];
    CHECK(ids == values<int32_t>(want, "greedy"));
    // One golden ends by its eos; another's is outside the vocabulary.
    CHECK((ids.size() < 12) == (name == "mixtral"));
    CHECK(o.eos.empty() == (name == "qwen3_moe"));
  }
}

TEST_CASE("hf: what is imported is exported byte for byte") {
  for (std::string name : kFamilies) {
    CAPTURE(name);
    TempDir dir;
    import_hf(kGoldens / name, dir / "step");
    export_hf(dir / "step", dir / "back");
    same_tensors(kGoldens / name, dir / "back");
    for (auto file : {"config.json", "generation_config.json"})
      CHECK(read_file(kGoldens / name / file) ==
            read_file(dir / "back" / file));
    // Sharded, and from what was exported.
    export_hf(dir / "step", dir / "shards", {.shard_bytes = 3000});
    CHECK(fs::exists(dir / "shards/model.safetensors.index.json"));
    same_tensors(kGoldens / name, dir / "shards");
    import_hf(dir / "shards", dir / "again");
    CHECK(read_file(dir / "step/manifest.json") ==
          read_file(dir / "again/manifest.json"));
  }
}

TEST_CASE("hf: bf16 stays bf16 on disk") {
  TempDir dir;
  import_hf(kGoldens / "qwen3_moe", dir / "step");
  Safetensors file(dir / "step/model.safetensors");
  for (auto& t : file.tensors()) CHECK(t.dtype == DType::BF16);
}

// Saves an initialised model as a checkpoint.
void save_model(const Config& c, const fs::path& folder) {
  SmallModel m(c);
  auto views = parameter_views(m.state, m.model.parameters());
  CheckpointContent content;
  content.model = views;
  content.config_toml = checkpoint_config(c);
  save_step_folder(folder, content);
}

const std::vector<std::vector<std::string>> kExpressible = {
    {"model.window=3", "moe.gate=softmax_topk_renorm", "model.n_kv_heads=1"},
    {"model.d_head=6", "model.tied=true", "model.norm_eps=1e-5"},
    {"model.qk_norm=head", "moe.gate=softmax_topk", "model.moe_layers=[1]",
     "model.d_ff_dense=10", "model.ffn=geglu", "model.dense_ffn=geglu"},
    {"model.qk_norm=head", "model.window=2",
     "model.bias=[\"qkv\",\"attn_out\"]", "model.rope_theta=500.0"},
    {"model.qk_norm=full", "moe.gate=softmax_topk", "model.pad=4"}};

TEST_CASE("hf: a model of moec's own goes out and comes back") {
  for (auto& set : kExpressible) {
    CAPTURE(set);
    TempDir dir;
    auto c = small_config(set);
    save_model(c, dir / "step");
    export_hf(dir / "step", dir / "hf");
    import_hf(dir / "hf", dir / "back");
    auto back = open_model(dir / "back").config;
    // What matters to training alone does not go with it.
    c.moe.aux_coef = c.moe.z_coef = 0;
    if (c.moe.gate == "topk_softmax") c.moe.gate = "softmax_topk_renorm";
    back.train.batch = c.train.batch;
    if (c.num_moe_layers() == c.model.n_layers)
      c.model.d_ff_dense = back.model.d_ff_dense;
    CHECK(to_toml(back) == to_toml(c));
    CHECK(read_file(dir / "step/model.safetensors") ==
          read_file(dir / "back/model.safetensors"));
    auto tokens = random_ids(12, 11, 4);
    auto logits = [&](const char* step) {
      Opened m(dir / step);
      auto f = m.function("logits", 2, 6);
      std::ranges::copy(tokens, f.input<int32_t>("tokens").begin());
      f.run();
      auto out = f.output<float>("logits");
      return std::vector<float>(out.begin(), out.end());
    };
    CHECK(difference(logits("step"), logits("back")) < 1e-6);
  }
}

TEST_CASE("hf: what no family can express is named by its key") {
  const std::pair<const char*, std::vector<std::string>> cases[] = {
      {"model.norm", {"model.norm=layer"}},
      {"model.pos", {"model.pos=learned"}},
      {"model.d_value", {"model.d_value=6"}},
      {"model.ffn", {"model.ffn=relu2_glu"}},
      {"model.bias", {"model.bias=true"}},
      {"model.bias", {"model.bias=[\"router\"]"}},
      {"model.bias", {"model.bias=[\"qkv\"]", "model.qk_norm=head"}},
      {"model.bias", {"model.bias=[\"qkv\", \"attn_out\"]"}},
      {"model.residual_ffn", {"model.residual_ffn=false"}},
      {"moe.shared_experts", {"moe.shared_experts=1"}},
      {"moe.noise", {"moe.noise=softplus"}},
      {"moe.eval_capacity", {"moe.eval_capacity=true", "moe.capacity=1.0"}},
      {"model.moe_every", {"model.moe_every=2"}},
      {"model.moe_layers", {"model.moe_layers=[1]"}},
      {"moe.experts", {"moe.experts=0", "moe.top_k=0"}},
      {"model.dense_ffn",
       {"model.moe_every=2", "model.qk_norm=head", "model.dense_ffn=relu"}},
      {"moe.gate", {"moe.gate=softmax_topk"}},
      {"model.window", {"model.qk_norm=full", "model.window=2"}},
      {"model.d_head", {"model.qk_norm=full", "model.d_head=6"}}};
  for (auto& [key, set] : cases) {
    CAPTURE(set);
    TempDir dir;
    save_model(small_config(set), dir / "step");
    CHECK_THROWS_WITH_AS(export_hf(dir / "step", dir / "hf"),
                         doctest::Contains((std::string(key) + ":").c_str()),
                         UserError);
    CHECK(!fs::exists(dir / "hf"));
  }
}

TEST_CASE("hf: fine-tuning goes on from an imported model and goes back") {
  TempDir dir;
  import_hf(kGoldens / "qwen3_moe", dir / "step");
  TrainOptions o;
  o.config = open_model(dir / "step", {"train.seq=8", "train.batch=2",
                                       "train.steps=2", "train.lr=1e-2"})
                 .config;
  std::string ids;
  for (int32_t id : random_ids(400, 19, 3)) ids += {char(id), '\0'};
  write_file_atomic(dir / "ids.bin", ids);
  o.config.data.path = {(dir / "ids.bin").string()};
  o.engine = engine_options(o.config);
  o.engine.threads = 1;
  o.init = dir / "step";
  o.out = dir / "run";
  CHECK(train(o).step == 2);
  // A resumed run carries it on too.
  o.config.train.steps = 3;
  o.resume = true;
  CHECK(train(o).step == 3);
  export_hf(dir / "run", dir / "hf");
  // The weights are f32 now, and config.json says so; nothing else changed.
  using nlohmann::json;
  auto before = json::parse(read_file(kGoldens / "qwen3_moe/config.json"));
  auto after = json::parse(read_file(dir / "hf/config.json"));
  CHECK(after["dtype"] == "float32");
  after["dtype"] = before["dtype"];
  CHECK(after == before);
  Safetensors a(kGoldens / "qwen3_moe"), b(dir / "hf");
  REQUIRE(a.tensors().size() == b.tensors().size());
  for (size_t i = 0; i < a.tensors().size(); ++i) {
    CHECK(a.tensors()[i].name == b.tensors()[i].name);
    CHECK(a.tensors()[i].dims == b.tensors()[i].dims);
    CHECK(b.tensors()[i].dtype == DType::F32);
  }
  // A text has no ids without the model's own tokenizer.
  write_file_atomic(dir / "text.txt", std::string(400, 'a'));
  o.config.data.path = {(dir / "text.txt").string()};
  o.resume = false;
  o.out = dir / "other";
  CHECK_THROWS_WITH_AS(train(o), doctest::Contains("has no tokenizer"),
                       UserError);
}

}  // namespace
}  // namespace moec::moe
