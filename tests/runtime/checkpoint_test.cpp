#include "runtime/checkpoint.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>

#include "runtime/metrics.h"
#include "runtime/run_folder.h"
#include "support/error.h"
#include "support/rng.h"
#include "tests/test.h"

using namespace moec;
namespace fs = std::filesystem;

namespace {

// A state whose every byte follows from the step.
struct State {
  std::vector<float> weight, moment;
  std::vector<TensorView> model, optimizer;
  CheckpointContent content;

  explicit State(int64_t step, size_t n = 1000,
                 std::optional<double> val_loss = std::nullopt)
      : weight(n), moment(n) {
    for (size_t i = 0; i < n; ++i) {
      weight[i] = normal_from_word(random_word(1, uint64_t(step), int64_t(i)));
      moment[i] = weight[i] * 2;
    }
    model = {{"w", DType::F32, {int64_t(n)}, std::as_bytes(std::span(weight))}};
    optimizer = {
        {"w.m", DType::F32, {int64_t(n)}, std::as_bytes(std::span(moment))}};
    content = {step, step * 3, val_loss, model, optimizer, "[model]\n", "{}"};
  }
};

bool holds(const Checkpoint& c, const State& s) {
  auto same = [](const fs::path& file, const TensorView& t) {
    return std::ranges::equal(
        Safetensors(file).require(t.name, t.dtype, t.dims), t.bytes);
  };
  return c.cursor == c.step * 3 && same(c.model(), s.model[0]) &&
         same(c.optimizer(), s.optimizer[0]);
}

void damage(const fs::path& file, int64_t at, int value) {
  std::FILE* f = std::fopen(file.c_str(), "r+b");
  std::fseek(f, long(at), SEEK_SET);
  std::fputc(value, f);
  std::fclose(f);
}

// The names in a folder, sorted, in one line.
std::string names(const fs::path& folder) {
  std::vector<std::string> all;
  for (auto& e : fs::directory_iterator(folder))
    all.push_back(e.path().filename().string());
  std::sort(all.begin(), all.end());
  std::string out;
  for (auto& n : all) out += (out.empty() ? "" : " ") + n;
  return out;
}

}  // namespace

TEST_CASE("checkpoint: save and open, equal content gives equal bytes") {
  TempDir a, b;
  State s(7, 1000, 1.5);
  Checkpoint c = save_checkpoint(a.path(), s.content);
  CHECK(c.folder == a / "step-7");
  save_checkpoint(b.path(), s.content);
  for (const char* f : {"model.safetensors", "optimizer.safetensors",
                        "config.toml", "tokenizer.json", "manifest.json"})
    CHECK(read_file(a / "step-7" / f) == read_file(b / "step-7" / f));
  CHECK(names(a / "step-7") ==
        "config.toml manifest.json model.safetensors optimizer.safetensors "
        "tokenizer.json");
  Checkpoint back = open_checkpoint(a.path());
  CHECK(back.step == 7);
  CHECK(back.val_loss == 1.5);
  CHECK(holds(back, s));
  CHECK(open_checkpoint(a / "step-7").step == 7);
  // Saved again: replaced whole, nothing else left.
  save_checkpoint(a.path(), s.content);
  CHECK(names(a.path()) == "step-7");
  // A step folder of its own, without optimizer and tokenizer.
  CheckpointContent bare = s.content;
  bare.optimizer = {};
  bare.tokenizer_json.clear();
  bare.val_loss = NAN;
  Checkpoint d = save_step_folder(a / "x/out", bare);
  CHECK(!open_step_folder(a / "x/out").has_optimizer());
  CHECK(!d.has_tokenizer());
  CHECK(names(a / "x") == "out");
  CHECK(save_step_folder(a / "y/out/", bare).folder == a / "y/out");
  CHECK(open_checkpoint(a / "y/out").step == 7);
  CHECK(error_of([&] {
          save_step_folder(a / "x/out", bare);
        }).find("already exists") != std::string::npos);
}

TEST_CASE("checkpoint: the newest valid one wins") {
  TempDir dir;
  for (int64_t step : {9, 10, 100, 20}) {
    State s(step);
    save_checkpoint(dir.path(), s.content);
  }
  fs::create_directory(dir / "step-0200");
  fs::create_directory(dir / "step-x");
  CHECK(checkpoint_steps(dir.path()) == std::vector<int64_t>{9, 10, 20, 100});
  CHECK(newest_checkpoint(dir.path())->step == 100);
  // Damage of each kind, newest first; each time the next one is taken.
  fs::remove(dir / "step-100/manifest.json");
  CHECK(newest_checkpoint(dir.path())->step == 20);
  fs::resize_file(dir / "step-20/optimizer.safetensors", 100);
  std::vector<std::string> why;
  auto hear = [&](const std::string& w) { why.push_back(w); };
  CHECK(newest_checkpoint(dir.path(), hear)->step == 10);
  REQUIRE(why.size() == 2);
  CHECK(why[0].find("step-100/manifest.json: cannot open") !=
        std::string::npos);
  CHECK(why[1].find("optimizer.safetensors:100: has 100 bytes") !=
        std::string::npos);
  damage(dir / "step-10/model.safetensors", 500, 99);
  CHECK(newest_checkpoint(dir.path())->step == 9);
  CHECK(error_of([&] { open_checkpoint(dir / "step-10"); }).find("corrupt") !=
        std::string::npos);
  damage(dir / "step-9/manifest.json", 0, 'x');
  CHECK(error_of([&] {
          open_checkpoint(dir.path());
        }).find("holds no valid checkpoint") != std::string::npos);
  CHECK(error_of([&] {
          open_checkpoint(dir / "gone");
        }).find("no such checkpoint folder") != std::string::npos);
}

TEST_CASE("checkpoint: pruning keeps the last ones and the best") {
  TempDir dir;
  double loss[] = {3.0, 1.0, 1.0, 2.5, 2.2, 2.1};
  for (int64_t i = 0; i < 6; ++i) {
    State s(10 * (i + 1), 1000, loss[i]);
    save_checkpoint(dir.path(), s.content);
    prune_checkpoints(dir.path(), 2);
  }
  CHECK(checkpoint_steps(dir.path()) == std::vector<int64_t>{20, 50, 60});
  // A damaged newest one counts for nothing.
  damage(dir / "step-60/model.safetensors", 500, 99);
  prune_checkpoints(dir.path(), 1);
  CHECK(checkpoint_steps(dir.path()) == std::vector<int64_t>{20, 50, 60});
  prune_checkpoints(dir.path(), 0);
  CHECK(checkpoint_steps(dir.path()).size() == 3);
}

TEST_CASE("checkpoint: a full disk keeps what was there") {
  TempDir dir;
  State old(1), next(2, 3000000);
  save_checkpoint(dir.path(), old.content);
  rlimit was;
  getrlimit(RLIMIT_FSIZE, &was);
  auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit tight{5 << 20, was.rlim_max};
  setrlimit(RLIMIT_FSIZE, &tight);
  std::string why =
      error_of([&] { save_checkpoint(dir.path(), next.content); });
  setrlimit(RLIMIT_FSIZE, &was);
  std::signal(SIGXFSZ, handler);
  CHECK(why.find("model.safetensors: no room left on the disk") !=
        std::string::npos);
  CHECK(names(dir.path()) == "step-1");
  CHECK(holds(*newest_checkpoint(dir.path()), old));
}

// The disk itself is full: a small tmpfs, where the system lets us mount one.
TEST_CASE("checkpoint: ENOSPC keeps what was there") {
  TempDir dir;
  bool mounted =
      unshare(CLONE_NEWNS) == 0 &&
      mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
      mount("none", dir.path().c_str(), "tmpfs", 0, "size=6m") == 0;
  if (!mounted) {
    skip_test("needs the right to mount a tmpfs");
    return;
  }
  State old(1), next(2, 3000000), small(3);
  save_checkpoint(dir.path(), old.content);
  std::string why =
      error_of([&] { save_checkpoint(dir.path(), next.content); });
  CHECK(why.find("model.safetensors: no room left on the disk") !=
        std::string::npos);
  CHECK(names(dir.path()) == "step-1");
  CHECK(holds(*newest_checkpoint(dir.path()), old));
  // What the failed save took is free again.
  save_checkpoint(dir.path(), small.content);
  CHECK(holds(*newest_checkpoint(dir.path()), small));
  CHECK(umount(dir.path().c_str()) == 0);
}

// A child saves and prunes without pause and is killed at a random moment;
// whatever it had reported as saved is there, or something newer.
TEST_CASE("checkpoint: kill -9 at random moments") {
  TempDir dir;
  int kills = long_tests() ? 300 : 20;
  int64_t step = 0;
  for (int k = 0; k < kills; ++k) {
    int pipes[2];
    REQUIRE(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
      RunFolder run(dir.path(), RunMode::Resume);
      auto newest = newest_checkpoint(dir.path());
      for (int64_t s = newest ? newest->step + 1 : 1;; ++s) {
        State state(s, 20000, 1.0 / double(s % 7 + 1));
        save_checkpoint(dir.path(), state.content);
        if (write(pipes[1], &s, sizeof s) != sizeof s) _exit(1);
        prune_checkpoints(dir.path(), 2);
      }
    }
    close(pipes[1]);
    // Some die while they start, most a while after their first save.
    if (k % 4 != 0) REQUIRE(read(pipes[0], &step, sizeof step) == sizeof step);
    std::this_thread::sleep_for(
        std::chrono::microseconds(random_word(5, uint64_t(k), 0) % 40000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    for (int64_t s; read(pipes[0], &s, sizeof s) == sizeof s;) step = s;
    close(pipes[0]);
    auto newest = newest_checkpoint(dir.path());
    if (step == 0 && !newest) continue;
    REQUIRE(newest);
    CHECK(newest->step >= step);
    CHECK(newest->step <= step + 1);
    CHECK(holds(*newest, State(newest->step, 20000)));
    for (int64_t s : checkpoint_steps(dir.path()))
      open_step_folder(dir / fmt::format("step-{}", s));
    step = newest->step;
  }
  CHECK(step > 0);
  RunFolder run(dir.path(), RunMode::Resume);
  for (auto& e : fs::directory_iterator(dir.path())) {
    std::string name = e.path().filename().string();
    CHECK((name == ".lock" || name.starts_with("step-")));
  }
}

TEST_CASE("run folder: one run, one owner") {
  TempDir dir;
  {
    RunFolder run(dir / "r", RunMode::New);
    CHECK(error_of([&] {
            RunFolder again(dir / "r", RunMode::Resume);
          }).find("in use by process") != std::string::npos);
    State s(3);
    save_checkpoint(run.path(), s.content);
  }
  CHECK(error_of([&] {
          RunFolder run(dir / "r", RunMode::New);
        }).find("--resume auto") != std::string::npos);
  RunFolder run(dir / "r", RunMode::Resume);
  // Leftovers of a save go; what only looks alike stays.
  fs::create_directories(dir / "r2/.tmp-step-5");
  fs::create_directories(dir / "r2/.trash-step-4");
  fs::create_directories(dir / "r2/.tmp-notes");
  RunFolder clean(dir / "r2", RunMode::New);
  CHECK(names(dir / "r2") == ".lock .tmp-notes");
  CHECK(new_run_folder(dir / "runs", "tiny") == dir / "runs/tiny-1");
  CHECK(new_run_folder(dir / "runs", "tiny") == dir / "runs/tiny-2");
}

TEST_CASE("metrics: continued at the step, torn and later lines dropped") {
  TempDir dir;
  fs::path file = dir / "metrics.jsonl";
  {
    MetricsWriter w(file, 0);
    for (int64_t s = 1; s <= 5; ++s) {
      Metric m[] = {{"loss", 1.0 / double(s)}, {"z", NAN}};
      w.write(s, m);
    }
    w.sync();
  }
  CHECK(read_file(file).starts_with("{\"step\":1,\"loss\":1,\"z\":null}\n"));
  std::string torn = read_file(file) + "{\"step\":6,\"lo";
  write_file_atomic(file, torn);
  CHECK(read_metrics(file).size() == 5);
  {
    MetricsWriter w(file, 3);
    Metric m[] = {{"loss", 9.0}};
    w.write(4, m);
  }
  auto lines = read_metrics(file);
  REQUIRE(lines.size() == 4);
  CHECK(lines[2].metrics[0] == Metric{"loss", 1.0 / 3});
  CHECK(std::isnan(lines[2].metrics[1].second));
  CHECK(lines[3].step == 4);
  CHECK(lines[3].metrics == std::vector<Metric>{{"loss", 9.0}});
  write_file_atomic(file, "{\"step\":1}\n{\"step\":\n");
  std::string why = error_of([&] { MetricsWriter w(file, 3); });
  CHECK(why.find("metrics.jsonl:2:") != std::string::npos);
}
