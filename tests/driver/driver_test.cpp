// The commands: what they print, and one clear error for every bad input.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "runtime/safetensors.h"
#include "support/file.h"
#include "tests/driver/process.h"
#include "tests/test.h"

namespace moec {
namespace {

const std::string kConfig = R"([model]
vocab = 11
d_model = 8
n_layers = 1
n_heads = 2
d_ff = 12
[moe]
experts = 4
top_k = 2
[train]
batch = 2
seq = 6
steps = 3
)";

struct Fixture {
  Fixture() {
    write_file_atomic(config, kConfig);
    std::string text;
    for (int i = 0; i < 300; ++i) text += char('a' + i * i % 11 % 10);
    write_file_atomic(data, text);
  }
  TempDir dir;
  std::filesystem::path config = dir / "a.toml", data = dir / "text.txt";
  std::filesystem::path run = dir / "run";

  Outcome train(std::vector<std::string> more = {}) {
    std::vector<std::string> args = {
        "train", config.string(), "--data",    data.string(),
        "--out", run.string(),    "--threads", "1"};
    args.insert(args.end(), more.begin(), more.end());
    return run_moec(args);
  }
};

std::string last_line(const std::string& text) {
  auto end = text.find_last_not_of('\n');
  auto start = text.rfind('\n', end);
  return text.substr(start == text.npos ? 0 : start + 1, end - start);
}

void fails(const Outcome& o, int code, const std::string& part) {
  CAPTURE(o.err);
  CHECK(o.code == code);
  CHECK(o.err.find(part) != o.err.npos);
  CHECK(o.err.find("internal error") == o.err.npos);
}

TEST_CASE_FIXTURE(Fixture, "bench fuse puts the forms of a step side by side") {
  auto o =
      run_moec({"bench", "fuse", config.string(), "--threads", "1", "--steps",
                "1", "--each", "--points", "2", "--free", "2", "--json"});
  CAPTURE(o.err);
  REQUIRE(o.code == 0);
  auto j = nlohmann::json::parse(last_line(o.out));
  CHECK(j["config"] == "a");
  for (auto key : {"fused_step_ms", "grouped_step_ms", "dense_step_ms",
                   "fused_peak_mib", "grouped_peak_mib"})
    CHECK(j[key].get<double>() > 0);
  for (auto key : {"loss_rel_diff", "grad_rel_diff", "run_loss_rel_diff",
                   "run_grad_rel_diff", "run_settled_grad_rel_diff",
                   "free_loss_rel_diff", "free_control_rel_diff"})
    CHECK(j[key].get<double>() < 1e-4);
  CHECK(j["run_moved_tokens"] == 0);
  for (auto key : {"free_alike_steps", "free_control_alike_steps"})
    CHECK(j[key] == 2);
  CHECK(j["forms"].size() == 9);  // and each of six fusions off
  bool found = false;
  for (auto& k : j["kernels"]) {
    CHECK(k["calls"].get<int>() > 0);
    found |= k["form"] == "fused" &&
             k["kernel"].get<std::string>().starts_with("moe_experts");
  }
  CHECK(found);
  o = run_moec({"bench", "layer", config.string(), "--threads", "1", "--json"});
  REQUIRE(o.code == 0);
  CHECK(nlohmann::json::parse(last_line(o.out))["tax"].get<double>() > 0);
  o = run_moec({"bench", "dispatch", "--threads", "1", "--json"});
  REQUIRE(o.code == 0);
  CHECK(nlohmann::json::parse(last_line(o.out))["launches"] == 2000);
}

TEST_CASE_FIXTURE(Fixture, "train, eval and generate") {
  auto t = train({"--json"});
  CAPTURE(t.err);
  REQUIRE(t.code == 0);
  auto report = nlohmann::json::parse(last_line(t.out));
  CHECK(report["step"] == 3);
  auto e = run_moec({"eval", run.string(), "--data", data.string(), "--json"});
  CAPTURE(e.err);
  REQUIRE(e.code == 0);
  auto j = nlohmann::json::parse(last_line(e.out));
  CHECK(j["tokens"] == 299);
  CHECK(j["expert_load"].size() == 1);
  int64_t total = 0;
  for (auto& n : j["expert_load"][0]) total += int64_t(n);
  CHECK(total == 2 * 299);
  // One byte a character, so that bits follow from nats.
  CHECK(double(j["bits_per_byte"]) ==
        doctest::Approx(double(j["loss"]) / std::log(2.0)));
  auto g = run_moec({"generate", run.string(), "--prompt-ids", "1,2", "--ids",
                     "--max-tokens", "5", "--temperature", "0"});
  CHECK(g.code == 0);
  CHECK(std::count(g.out.begin(), g.out.end(), ',') == 4);
  auto text = run_moec({"generate", run.string(), "--prompt", "ab",
                        "--max-tokens", "5", "--seed", "3"});
  CHECK(text.code == 0);
  CHECK(text.out.starts_with("ab"));
  CHECK(text.out.size() == 8);
}

TEST_CASE_FIXTURE(Fixture,
                  "generate: batches, stop texts, seeds, stored bf16") {
  REQUIRE(train().code == 0);
  auto generate = [&](std::vector<std::string> more) {
    std::vector<std::string> args = {"generate", run.string(), "--max-tokens",
                                     "20"};
    args.insert(args.end(), more.begin(), more.end());
    return run_moec(args);
  };
  auto greedy = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--temperature", "0"});
    return generate(more).out;
  };
  // Prompts of different lengths, each as alone.
  CHECK(greedy({"--prompt", "abdab", "--prompt", "d"}) ==
        greedy({"--prompt", "abdab"}) + greedy({"--prompt", "d"}));

  // A text that streams until a stop text is what stands before it.
  std::vector<std::string> seeded = {"--prompt", "ab",      "--seed",
                                     "3",        "--min-p", "0.01"};
  auto whole = generate(seeded);
  CHECK(whole.code == 0);
  CHECK(whole.out == generate(seeded).out);
  std::string text = whole.out.substr(2, 20), stop = text.substr(7, 2);
  seeded.insert(seeded.end(), {"--stop", stop, "--stats"});
  auto cut = generate(seeded);
  CHECK(cut.out == "ab" + text.substr(0, text.find(stop)) + "\n");
  CHECK(cut.err.find("tokens/s") != cut.err.npos);

  auto half = generate({"--prompt", "ab", "--set", "train.dtype=bf16"});
  CAPTURE(half.err);
  CHECK(half.code == 0);
  CHECK(half.out.size() == 23);
}

TEST_CASE_FIXTURE(Fixture, "run gives the tensors of a function") {
  std::vector<int32_t> ids(12);
  for (int i = 0; i < 12; ++i) ids[size_t(i)] = i % 11;
  auto in = (dir / "in.safetensors").string();
  auto out = (dir / "out.safetensors").string();
  TensorView tokens{
      "tokens", DType::I32, {2, 6}, std::as_bytes(std::span(ids))};
  TensorView targets = tokens;
  targets.name = "targets";
  write_safetensors(in, std::vector{tokens, targets});
  auto g = run_moec({"run", config.string(), "--fn", "grad", "--inputs", in,
                     "--outputs", out});
  CAPTURE(g.err);
  REQUIRE(g.code == 0);
  Safetensors file(out);
  CHECK(file.find("loss"));
  CHECK(file.find("ce"));
  CHECK(file.find("grad.layers.0.moe.experts.up_proj.weight"));

  auto ir = (dir / "f.ir").string();
  write_file_atomic(ir,
                    "func @f(%tokens: i32[2,6]) {\n"
                    "  %a = add(%tokens, %tokens) : i32[2,6]\n"
                    "  return %a\n}\n");
  auto r = run_moec({"run", ir, "--inputs", in, "--outputs", out});
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  Safetensors result(out);
  auto bytes = result.require("out0", DType::I32, std::vector<int64_t>{2, 6});
  CHECK(int(bytes[4]) == 2);
}

TEST_CASE_FIXTURE(Fixture, "dump is canonical text") {
  auto d = run_moec({"dump", config.string(), "--fn", "loss"});
  REQUIRE(d.code == 0);
  auto file = dir / "d.ir";
  write_file_atomic(file, d.out);
  auto o = run_moec({"opt", file.string(), "--passes="});
  CHECK(o.code == 0);
  CHECK(o.out == d.out);
}

TEST_CASE_FIXTURE(Fixture, "dump writes a page, folders, and parts of passes") {
  auto page = (dir / "p.html").string(), folder = (dir / "passes").string();
  auto d = run_moec({"dump", config.string(), "--html", page, "--to", folder});
  CAPTURE(d.err);
  REQUIRE(d.code == 0);
  CHECK(read_file(page).find("train_step") != std::string::npos);
  auto grad = dir / "passes/grad/00_input.ir";
  REQUIRE(std::filesystem::exists(grad));
  // A file goes on from where it was written.
  auto whole = run_moec({"dump", grad.string(), "--to-pass", "schedule"});
  auto half = run_moec({"dump", grad.string(), "--to-pass", "grad"});
  REQUIRE(half.code == 0);
  auto at = dir / "half.ir";
  write_file_atomic(at, half.out);
  auto rest = run_moec({"dump", at.string(), "--from-pass", "fuse-loss-grad",
                        "--to-pass", "schedule"});
  CHECK(whole.code == 0);
  CHECK(rest.out == whole.out);
  auto dumped = (dir / "dumped").string();
  REQUIRE(train({"--dump-to", dumped}).code == 0);
  CHECK(std::filesystem::exists(dir / "dumped/train_step/00_input.ir"));
  fails(run_moec({"dump", config.string(), "--to-pass", "nothing"}), 2,
        "`nothing` is no pass");
}

TEST_CASE_FIXTURE(Fixture, "a step that is not finite says where it begins") {
  // After a step this large gradients vanish, and without eps 0 / 0 follows.
  auto t = train({"--set", "train.eps=0", "--set", "train.lr=1000"});
  fails(t, 1, "is not finite");
  CHECK(t.err.find("without fusions it begins at ") != t.err.npos);
}

TEST_CASE_FIXTURE(Fixture, "inspect counts parameters") {
  auto i = run_moec({"inspect", config.string(), "--json"});
  REQUIRE(i.code == 0);
  auto j = nlohmann::json::parse(last_line(i.out));
  int64_t total = 0;
  for (auto& p : j["params"]) {
    int64_t n = 1;
    for (auto& d : p["shape"]) n *= int64_t(d);
    total += n;
  }
  CHECK(j["parameters"] == total);
  CHECK(j["active_parameters"] < j["parameters"]);
  CHECK(j["memory"]["parameters"] == 4 * total);
  CHECK(j["memory"]["temporaries"] > 0);
  CHECK(j["roofline"]["step_flops"] > 0);
  CHECK(j["roofline"]["decode_tokens_per_s"] > 0);
}

TEST_CASE_FIXTURE(Fixture, "inspect says which experts take which tokens") {
  REQUIRE(train().code == 0);
  auto page = (dir / "page.html").string();
  auto i = run_moec({"inspect", run.string(), "--text", data.string(), "--html",
                     page, "--json"});
  CAPTURE(i.err);
  REQUIRE(i.code == 0);
  auto j = nlohmann::json::parse(last_line(i.out));
  REQUIRE(j["routing"].size() == 1);
  auto& layer = j["routing"][0];
  CHECK(layer["experts"].size() == 4);
  int64_t choices = 0;
  for (auto& e : layer["experts"]) {
    choices += int64_t(e["choices"]);
    for (auto& t : e["frequent"]) CHECK(t["token"].get<std::string>().size());
  }
  CHECK(choices == 2 * 299);
  CHECK(layer["entropy"] > 0);
  CHECK(layer["first"].size() == j["excerpt"].size());
  auto html = read_file(page);
  CHECK(html.starts_with("<!doctype html>"));
  CHECK(html.find("MoE layer 0") != html.npos);
  // Nothing is loaded from elsewhere.
  for (auto part : {"http", "src=", "<script", "@import"})
    CHECK(html.find(part) == html.npos);
  auto table = run_moec({"inspect", run.string(), "--text", data.string()});
  CHECK(table.code == 0);
  CHECK(table.out.find("experts dead") != table.out.npos);
}

TEST_CASE_FIXTURE(Fixture, "data of several files, and metrics of experts") {
  auto lines = (dir / "b.jsonl").string();
  write_file_atomic(lines, "{\"body\": \"abc\"}\n{\"body\": \"cba\"}\n");
  auto t = train({"--data", lines, "--set", "data.field=body"});
  CAPTURE(t.err);
  REQUIRE(t.code == 0);
  CHECK(t.err.find("experts, by layer: entropy") != t.err.npos);
  auto metrics =
      nlohmann::json::parse(last_line(read_file(run / "metrics.jsonl")));
  CHECK(metrics["entropy"].size() == 1);
  REQUIRE(metrics["load"].size() == 1);
  int64_t load = 0;
  for (auto& n : metrics["load"][0]) load += int64_t(n);
  CHECK(load == 2 * 6 * 2);
  // The checkpoint's config has the field.
  auto e = run_moec({"eval", run.string(), "--data", data.string(), "--data",
                     lines, "--json"});
  CAPTURE(e.err);
  REQUIRE(e.code == 0);
  CHECK(nlohmann::json::parse(last_line(e.out))["tokens"] == 305);
  fails(run_moec({"eval", run.string(), "--data", lines, "--set",
                  "data.field=text"}),
        1, "b.jsonl:1:0");
}

TEST_CASE("the version stands alone on a line") {
  auto o = run_moec({"--version"});
  CHECK(o.code == 0);
  CHECK(o.out.starts_with("moec "));
  CHECK(o.out.find('\n') == o.out.size() - 1);
}

TEST_CASE("kernel benches give a rate for each row") {
  auto rows = [](std::vector<std::string> args, const char* key, size_t n) {
    args.insert(args.begin(), "bench");
    args.insert(args.end(), {"--seconds", "0", "--json"});
    Outcome o = run_moec(args);
    CAPTURE(o.err);
    REQUIRE(o.code == 0);
    auto all = nlohmann::json::parse(last_line(o.out))[key];
    CHECK(all.size() == n);
    for (auto& row : all) {
      CHECK(row["us"] > 0);
      CHECK(row["tasks"] > 0);
      const bool stream = row.contains("gb_per_s");
      CHECK(row[stream ? "stream_fraction" : "peak_fraction"] > 0);
    }
  };
  rows({"ops", "--only", "64x64x64 N"}, "matmul", 3);
  rows({"ops", "--only", "rope"}, "ops", 1);
  rows({"moe", "--only", "(256,256"}, "moe", 4);
  rows({"attention", "--only", "B2 H6/2"}, "attention", 2);
}

TEST_CASE("another build takes turns with a bench") {
  auto against = [](const char* binary) {
    return run_moec({"bench", "ops", "--only", "64x64x64 N", "--seconds", "0",
                     "--json", "--against", binary});
  };
  auto o = against(MOEC_BINARY);
  CAPTURE(o.err);
  REQUIRE(o.code == 0);
  auto rows = nlohmann::json::parse(last_line(o.out))["matmul"];
  REQUIRE(rows.size() == 3);
  for (auto& row : rows) CHECK(row["speedup"] > 0);
  fails(against("/bin/true"), 1, "ended before the bench did");
}

TEST_CASE_FIXTURE(Fixture, "import, all that runs on it, and export") {
  std::string hf = "tests/models/golden/hf/mixtral";
  auto step = (dir / "step").string(), back = (dir / "back").string();
  auto i = run_moec({"import", hf, step, "--json"});
  CAPTURE(i.err);
  REQUIRE(i.code == 0);
  auto report = nlohmann::json::parse(last_line(i.out));
  CHECK(report["family"] == "mixtral");
  CHECK(report["files"] == 3);
  auto names = run_moec({"inspect", step, "--json"});
  CHECK(names.out.find("layers.1.block_sparse_moe.experts.*.w3.weight") !=
        std::string::npos);
  // transformers' continuation, which ends by its eos before --max-tokens.
  Safetensors want(hf + ".safetensors");
  auto list = [&](const char* name, size_t count) {
    auto bytes = want.find(name)->bytes;
    std::string text;
    for (size_t k = 0; k < std::min(count, bytes.size() / 4); ++k)
      text += (k ? "," : "") + std::to_string(int(bytes[4 * k]));
    return text;
  };
  auto g = run_moec({"generate", step, "--prompt-ids", list("tokens", 5),
                     "--ids", "--max-tokens", "12", "--temperature", "0"});
  CAPTURE(g.err);
  CHECK(g.code == 0);
  CHECK(g.out == list("greedy", 12) + "\n");
  std::string ids;
  for (int k = 0; k < 40; ++k) ids += {char(k * 7 % 19), '\0'};
  write_file_atomic(dir / "ids.bin", ids);
  auto bin = (dir / "ids.bin").string();
  auto e = run_moec({"eval", step, "--data", bin, "--json"});
  CAPTURE(e.err);
  REQUIRE(e.code == 0);
  auto j = nlohmann::json::parse(last_line(e.out));
  CHECK(j["tokens"] == 39);
  CHECK(double(j["perplexity"]) ==
        doctest::Approx(std::exp(double(j["loss"]))));
  auto t =
      run_moec({"train", "--init", step, "--data", bin, "--out", run.string(),
                "--steps", "2", "--set", "train.seq=8", "--threads", "1"});
  CAPTURE(t.err);
  CHECK(t.code == 0);
  auto x = run_moec({"export", run.string(), back});
  CAPTURE(x.err);
  CHECK(x.code == 0);
  CHECK(std::filesystem::exists(dir / "back/model.safetensors"));
  fails(run_moec({"import", hf, step}), 1, "already exists");
  fails(run_moec({"import", (dir / "none").string(), back}), 1, "none");
  fails(run_moec({"export", run.string(), back}), 1, "already exists");
  fails(run_moec({"generate", step, "--prompt", "a"}), 1, "--prompt-ids");
}

TEST_CASE_FIXTURE(Fixture, "flags and configs that are wrong exit with 2") {
  fails(run_moec({}), 2, "subcommand");
  fails(run_moec({"trian"}), 2, "");
  fails(run_moec({"train", "--nonsense"}), 2, "nonsense");
  fails(train({"--set", "train.stepz=3"}), 2, "did you mean train.steps");
  fails(train({"--set", "train.lr=fast"}), 2, "train.lr");
  fails(train({"--device", "gpu"}), 2, "gpu");
  fails(train({"--fuse", "everything"}), 2, "everything");
  fails(run_moec({"train", (dir / "none.toml").string()}), 2, "none.toml");
  fails(train({"--set", "model.vocab=5"}), 2, "model.vocab = 5");
  fails(run_moec({"generate", "x", "--top-p", "2", "--prompt", "a"}), 2,
        "top-p");
}

TEST_CASE_FIXTURE(Fixture, "bad files exit with 1") {
  fails(run_moec({"train", config.string(), "--out", run.string(), "--data",
                  (dir / "none.txt").string()}),
        1, "none.txt");
  write_file_atomic(data, "");
  fails(train(), 1, "empty");
  write_file_atomic(data, "ab");
  fails(train(), 1, "token");
  auto ir = dir / "bad.ir";
  write_file_atomic(ir, "func @f(%x: f32[2]) {\n  %y = frob(%x) : f32[2]\n");
  fails(run_moec({"opt", ir.string(), "--passes="}), 1, "bad.ir:2");
  fails(run_moec({"generate", (dir / "none").string(), "--prompt", "a"}), 1,
        "none");
}

TEST_CASE_FIXTURE(Fixture, "a corrupt checkpoint is passed over or named") {
  REQUIRE(train({"--set", "train.save_every=1"}).code == 0);
  auto newest = run / "step-3" / "model.safetensors";
  auto bytes = read_file(newest);
  write_file_atomic(newest, bytes.substr(0, bytes.size() / 2));
  fails(run_moec({"generate", (run / "step-3").string(), "--prompt", "a"}), 1,
        "model.safetensors");
  // The run as a whole still has step 2.
  auto g = run_moec(
      {"generate", run.string(), "--prompt", "a", "--max-tokens", "3"});
  CAPTURE(g.err);
  CHECK(g.code == 0);
  auto r = train({"--resume", "auto"});
  CAPTURE(r.err);
  CHECK(r.code == 0);
  CHECK(std::filesystem::exists(run / "step-3"));
}

TEST_CASE_FIXTURE(Fixture, "another run's folder is refused") {
  REQUIRE(train().code == 0);
  fails(train(), 1, "--resume");
}

}  // namespace
}  // namespace moec
