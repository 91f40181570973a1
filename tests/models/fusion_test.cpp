// Fused and unfused training agree, and every choice of the config takes the
// fused path.
#include <cstdlib>

#include "ir/op_def.h"
#include "models/moe/fuse_benchmark.h"
#include "passes/pass_manager.h"
#include "tests/models/small.h"
#include "tests/test.h"

namespace moec::moe {
namespace {

EngineOptions form(std::string fuse, std::string moe,
                   std::string device = "cpu") {
  EngineOptions o;
  o.device = std::move(device);
  o.threads = 1;
  o.fuse = std::move(fuse);
  o.moe = std::move(moe);
  return o;
}

TEST_CASE("fused training agrees with unfused and with doubles") {
  const EngineOptions fused = form("on", "fused");
  auto all = variants();
  for (size_t v = 0; v < all.size(); ++v) {
    // the others under --long
    if (!long_tests() && v != 1 && v != 3) continue;
    auto set = all[v];
    set.insert(set.end(), {"model.d_model=24", "model.d_ff=40",
                           "model.vocab=29", "train.seq=16", "train.lr=1e-3"});
    CAPTURE(set);
    Config c = small_config(set);
    FusionCheck r = check_fusion(c, fused, form("off", "grouped"),
                                 {.points = 10, .every = 2, .free_steps = 100});
    INFO("gradient of ", r.grad_of);
    CHECK(r.last_loss < r.first_loss);
    CHECK(r.loss < 1e-5);
    CHECK(r.grad < 1e-4);
    CHECK(r.settled_grad == r.grad);
    CHECK(r.moved_tokens == 0);
    CHECK(r.free_loss < 1e-3);
    for (const EngineOptions& o : {fused, form("off", "grouped")}) {
      r = check_fusion(c, o, form("off", "dense", "ref64"), {.points = 1});
      INFO("gradient of ", r.grad_of);
      CHECK(r.loss < 1e-5);
      CHECK(r.grad < 1e-4);
    }
  }
}

// With all experts chosen: where some are, rounding sends a token whose experts
// are nearly tied elsewhere, and its gradient with it.
TEST_CASE("in bf16 the gradients of every form are near those of f32") {
  for (auto ffn : {"gelu", "swiglu"})
    for (auto o :
         {form("on", "fused"), form("on", "grouped"), form("off", "grouped")}) {
      o.dtype = "bf16";
      CAPTURE(ffn);
      CAPTURE(o.moe);
      CAPTURE(o.fuse);
      Config c = small_config({"model.d_model=64", "model.d_ff=96",
                               "model.vocab=29", "train.seq=32", "moe.top_k=4",
                               std::string("model.ffn=") + ffn});
      FusionCheck r =
          check_fusion(c, o, form("off", "grouped"), {.points = 3, .every = 2});
      INFO("gradient of ", r.grad_of, " ", r.grad, ", loss ", r.loss);
      CHECK(r.loss < 1e-3);
      CHECK(r.grad < 0.02);
      CHECK(r.moved_tokens == 0);  // in another order at most
    }
}

// ---- the forms of the IR

struct Shape {
  int attention = 0, experts = 0, loss = 0;
  bool unfused = false;  // scores, logits, or experts in separate ops
};

void count(const Graph& g, Shape& s) {
  for (Node* n : g) switch (n->op()) {
      case Op::Attention: ++s.attention; break;
      case Op::MoeFfn: ++s.experts; break;
      case Op::LinearCrossEntropy:
      case Op::LinearCrossEntropyBoth: ++s.loss; break;
      case Op::CausalMask:
      case Op::CrossEntropy:
      case Op::GroupedMatmul: s.unfused = true; break;
      case Op::Fusion: count(*n->body(), s); break;
      default: break;
    }
}

Shape shape_at(const Config& c, Stage stage) {
  Transformer model(c);
  auto g = train_step_function(model);
  PassContext ctx;
  Shape s;
  RunOptions hooks;
  hooks.stage = [&](Stage at, const Graph& now) {
    if (at == stage) count(now, s);
  };
  run_pipeline(*g, ctx, hooks);
  return s;
}

void check_fused(const Config& c, Stage stage) {
  Shape s = shape_at(c, stage);
  CHECK(s.attention == c.model.n_layers);
  CHECK(s.experts == c.num_moe_layers());
  CHECK(s.loss == 1);
  CHECK(!s.unfused);
}

TEST_CASE("every gate, capacity, overflow and FFN kind is fused") {
  std::vector<std::string> gates{"topk_softmax", "softmax_topk",
                                 "softmax_topk_renorm"};
  std::vector<std::vector<std::string>> capacities{
      {},
      {"moe.capacity=1.0"},
      {"moe.capacity=0.6", "moe.overflow=pass"},
      {"moe.capacity=0.6", "moe.capacity_scope=batch"}};
  for (const std::string& gate : gates)
    for (const auto& capacity : capacities)
      for (auto ffn : {"gelu", "relu", "silu", "swiglu", "geglu", "relu2_glu",
                       "gelu_bilinear"})
        for (bool bias : {false, true}) {
          std::vector<std::string> set = capacity;
          set.insert(set.end(),
                     {"moe.gate=" + gate, std::string("model.ffn=") + ffn});
          if (bias) set.push_back("model.bias=true");
          CAPTURE(set);
          check_fused(small_config(set), Stage::Matched);
        }
}

TEST_CASE("noise, dropout, shared experts and every kind of attention fuse") {
  for (auto& set : variants()) {
    CAPTURE(set);
    check_fused(small_config(set), Stage::Matched);
  }
  for (auto noise : {"softplus", "gaussian", "jitter"}) {
    CAPTURE(noise);
    check_fused(
        small_config({std::string("moe.noise=") + noise, "model.dropout=0.2",
                      "moe.experts=5", "moe.top_k=1"}),
        Stage::Matched);
  }
}

TEST_CASE("NanoMoE's own training, with dropout and biases, is fused") {
  Config c = load_config("examples/nanomoe.toml", {"model.vocab=65"});
  CHECK(c.model.dropout > 0);
  check_fused(c, Stage::Scheduled);
}

// MOEC_FUSION_CONFIGS names files, with commas between.
TEST_CASE("fused and unfused agree on whole configs") {
  const char* list = std::getenv("MOEC_FUSION_CONFIGS");
  if (!long_tests() || !list)
    return skip_test("MOEC_TEST_LONG and MOEC_FUSION_CONFIGS are not set");
  std::string files = list;
  for (size_t at = 0; at < files.size();) {
    size_t end = std::min(files.find(',', at), files.size());
    std::string file = files.substr(at, end - at);
    at = end + 1;
    CAPTURE(file);
    FusionCheck r =
        check_fusion(load_config(file), form("on", "fused"),
                     form("off", "grouped"), {.points = 10, .every = 1});
    INFO("gradient of ", r.grad_of);
    CHECK(r.loss < 1e-5);
    CHECK(r.grad < 1e-4);
  }
}

}  // namespace
}  // namespace moec::moe
