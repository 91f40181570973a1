// Configs: defaults, errors with places, overrides, the canonical form.
#include "models/moe/config.h"

#include "models/moe/trainer.h"
#include "support/error.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

const std::string kText = R"([model]
vocab = 65
d_model = 128
n_layers = 4
n_heads = 4
d_ff = 512
[moe]
experts = 4
top_k = 2
[train]
batch = 32
seq = 128
)";

TEST_CASE("defaults follow from what is given") {
  Config c = parse_config(kText, "a.toml");
  CHECK(c.model.n_kv_heads == 4);
  CHECK(c.model.d_head == 32);
  CHECK(c.model.d_value == 32);
  CHECK(c.model.dense_ffn == c.model.ffn);
  CHECK(c.model.d_ff_dense == 512);
  CHECK(c.train.schedule == "constant");
  CHECK(c.train.beta2 == 0.999);
  CHECK(c.num_moe_layers() == 4);
}

TEST_CASE("the canonical form parses back to itself") {
  for (auto text : {kText, std::string(default_config())}) {
    auto once = to_toml(parse_config(
        text, "a.toml",
        {"model.bias=[\"qkv\", \"router\"]", "model.moe_layers=[1]",
         "model.n_layers=2", "mesh.axes={data=2}",
         "mesh.rules={batch=\"data\"}", "train.lr=1e-3"}));
    CHECK(to_toml(parse_config(once, "b.toml")) == once);
  }
}

TEST_CASE("--set takes TOML values and bare strings") {
  Config c = parse_config(
      kText, "a.toml",
      {"train.lr=1e-3", "data.path=some/file.txt", "model.norm=layer",
       "model.bias=true", "model.qk_norm=false", "train.steps=7"});
  CHECK(c.train.lr == 1e-3);
  CHECK(c.data.path == std::vector<std::string>{"some/file.txt"});
  CHECK(c.model.norm == "layer");
  CHECK(c.model.bias == Biases{true, true, true, false, true});
  CHECK(c.model.qk_norm == "none");
  CHECK(c.train.steps == 7);
}

TEST_CASE("moe_every counts from layer 0, moe_layers overrides it") {
  Config c = parse_config(kText, "a.toml", {"model.moe_every=2"});
  CHECK(c.is_moe_layer(0));
  CHECK(!c.is_moe_layer(1));
  CHECK(c.is_moe_layer(2));
  c = parse_config(kText, "a.toml", {"model.moe_layers=[3]"});
  CHECK(!c.is_moe_layer(0));
  CHECK(c.is_moe_layer(3));
}

// What parsing `text` with `set` says; empty: nothing.
std::string complaint(const std::string& text,
                      const std::vector<std::string>& set = {}) {
  try {
    parse_config(text, "a.toml", set);
  } catch (const UsageError& e) {
    return e.what();
  }
  return {};
}

bool has(const std::string& text, std::string_view part) {
  CAPTURE(text);
  return text.find(part) != text.npos;
}

TEST_CASE("errors name file, line, key and remedy") {
  CHECK(has(complaint(kText + "stepz = 3\n"), "a.toml:13: unknown key"));
  CHECK(has(complaint(kText + "stepz = 3\n"), "did you mean train.steps?"));
  CHECK(has(complaint("[modle]\nvocab = 3\n"), "did you mean [model]?"));
  CHECK(has(complaint("x = 1\n"), "outside a section"));
  CHECK(has(complaint("[model\n"), "a.toml:1"));
  CHECK(has(complaint(kText + "lr = \"fast\"\n"), "must be a number"));
  CHECK(has(complaint(kText + "steps = 1.5\n"), "must be an integer"));
  CHECK(has(complaint(kText, {"model.norm=batch"}), "\"rms\", \"layer\""));
  CHECK(has(complaint(kText, {"model.dropout=1.5"}), "must be"));
  CHECK(has(complaint(kText, {"moe.top_k=9"}), "more than moe.experts = 4"));
  CHECK(has(complaint(kText, {"model.n_kv_heads=3"}), "not a multiple"));
  CHECK(has(complaint(kText, {"model.n_heads=3"}), "set model.d_head"));
  CHECK(has(complaint(kText, {"model.d_head=5"}), "odd"));
  CHECK(has(complaint(kText, {"model.bias=[\"qk\"]"}), "entries are"));
  CHECK(has(complaint(kText, {"model.moe_layers=[4]"}), "last layer is 3"));
  CHECK(has(complaint(kText, {"nonsense"}), "expected key=value"));
  CHECK(has(complaint(kText, {"train.learning_rate=1"}), "train."));
  CHECK(has(complaint("[model]\nvocab = 1\n"), "is missing"));
}

TEST_CASE("no TOML text does anything but parse or complain") {
  // Every prefix, and every single-byte change, of a valid file.
  for (size_t i = 0; i < kText.size(); ++i) {
    complaint(kText.substr(0, i));
    std::string changed = kText;
    changed[i] = char(changed[i] ^ 0x15);
    complaint(changed);
  }
}

}  // namespace
}  // namespace moec::moe
