// compile(): pipeline, memory plan, kernels and executable together, on every
// backend and for several thread counts.
#include "codegen/compile.h"

#include <cmath>
#include <cstring>

#include "codegen/tensor_io.h"
#include "ir/builder.h"
#include "ir/text.h"
#include "runtime/buffer.h"
#include "tests/codegen/harness.h"
#include "tests/ops/op_cases.h"
#include "tests/test.h"

namespace moec {
namespace {

// Buffers for one function; donated arguments share their output's.
struct Call {
  explicit Call(CompiledFunction& f) : f(f) {
    for (auto& s : f.outputs()) own.emplace_back(s.bytes);
    for (size_t o = 0; o < f.outputs().size(); ++o)
      out.push_back({own[o].data(), size_t(f.outputs()[o].bytes)});
    for (size_t i = 0; i < f.inputs().size(); ++i) {
      int d = f.donated()[i];
      if (d < 0) own.emplace_back(f.inputs()[i].bytes);
      in.push_back(d >= 0 ? out[d]
                          : std::span<std::byte>(own.back().data(),
                                                 size_t(f.inputs()[i].bytes)));
    }
  }
  void set(const Graph& g, absl::Span<const Tensor> values) {
    for (size_t i = 0; i < in.size(); ++i) store_tensor(values[i], in[i]);
  }
  void run() { f.run(in, out); }
  std::vector<Tensor> results(const Graph& g) {
    std::vector<Tensor> r;
    for (size_t o = 0; o < out.size(); ++o)
      r.push_back(load_tensor(g.outputs()[o].type(), out[o]));
    return r;
  }

  CompiledFunction& f;
  std::vector<Buffer> own;
  std::vector<std::span<std::byte>> in, out;
};

std::vector<Tensor> run(const Graph& g, Backend& b,
                        absl::Span<const Tensor> args,
                        const CompileOptions& o = {}) {
  auto f = compile(g, b, o);
  Call call(*f);
  call.set(g, args);
  call.run();
  return call.results(g);
}

// One step of SGD on softmax(x w + b) against targets; the weights come back
// under their names.
std::unique_ptr<Graph> train_step() {
  auto g = std::make_unique<Graph>("train_step");
  Value x = g->add_arg("x", {DType::F32, {32, 20}});
  Value t = g->add_arg("t", {DType::I32, {32}});
  Value w = g->add_arg("w", {DType::F32, {20, 7}});
  Value c = g->add_arg("c", {DType::F32, {7}});
  Builder b(*g);
  Value logits = b.add(b.matmul(x, w), c);
  Value losses = b.node(Op::CrossEntropy, {logits, t})->result();
  Value loss = b.mean(losses, {0});
  Node* d = b.node(Op::Grad, {loss, w, c});
  Value w1 = b.sub(w, b.mul(d->result(0), 0.5));
  Value c1 = b.sub(c, b.mul(d->result(1), 0.5));
  g->set_outputs({loss, w1, c1}, {"loss", "w", "c"});
  return g;
}

std::vector<Tensor> train_inputs() {
  std::vector<Tensor> in;
  in.push_back(random_tensor({{DType::F32, {32, 20}}}, 1));
  in.push_back(random_tensor({{DType::I32, {32}}, 0, 6}, 2));
  in.push_back(random_tensor({{DType::F32, {20, 7}}, -0.1, 0.1}, 3));
  in.push_back(Tensor::zeros({DType::F32, {7}}));
  return in;
}

}  // namespace

TEST_CASE("a linear classifier trains the same on every backend") {
  auto g = train_step();
  std::vector<std::vector<double>> losses;
  for (const char* device : {"cpu", "ref", "ref64"}) {
    auto backend = make_backend(device, 2);
    auto f = compile(*g, *backend);
    Call call(*f);
    call.set(*g, train_inputs());
    losses.emplace_back();
    for (int step = 0; step < 20; ++step) {
      call.run();
      losses.back().push_back(call.results(*g)[0].data[0]);
    }
  }
  CHECK(losses[0].front() == doctest::Approx(std::log(7.0)).epsilon(0.1));
  CHECK(losses[0].back() < 0.8 * losses[0].front());
  for (int step = 0; step < 20; ++step) {
    CHECK(losses[0][step] == doctest::Approx(losses[2][step]).epsilon(1e-5));
    CHECK(losses[1][step] == doctest::Approx(losses[2][step]).epsilon(1e-5));
  }
}

TEST_CASE("a function says what it takes, gives and shares") {
  auto g = train_step();
  auto backend = make_backend("cpu", 1);
  auto f = compile(*g, *backend);
  CHECK(f->inputs()[2].name == "w");
  CHECK(f->outputs()[0].name == "loss");
  CHECK(f->donated()[2] == 1);
  CHECK(f->donated()[0] == -1);
  CHECK(f->info().launches > 0);
  CHECK(f->info().flops > 2 * 2 * 32 * 20 * 7);
  CHECK(!f->info().passes.empty());
  CHECK(f->code("llvm").find("define") != std::string::npos);
  CHECK_THROWS_AS(make_backend("tpu"), UsageError);
}

namespace {

bool has_f64(const Graph& g) {
  for (Node* n : g)
    for (const Type& t : n->types())
      if (t.dtype == DType::F64) return true;
  return false;
}

// Level 0, the native one, sees all cases; each of the others every third one
// or, in long tests, all too.
bool at_level(size_t index, size_t level) {
  return level == 0 || long_tests() || index % 3 == level % 3;
}

void check_case(const OpCase& c, Backend& cpu) {
  CAPTURE(c.name);
  auto g = build_graph(c);
  if (has_f64(*g)) return;
  auto in = random_inputs(c);
  auto want = interpret(*g, in);
  for (bool fuse : {true, false}) {
    CompileOptions o;
    if (!fuse) o.pipeline.fuse = FusionSet::none();
    std::vector<Tensor> got;
    try {
      got = run(*g, cpu, in, o);
    } catch (const std::exception& e) {
      FAIL_CHECK(std::string(e.what()));
      continue;
    }
    for (size_t i = 0; i < want.size(); ++i) {
      std::string d = difference(got[i], want[i], c.tolerance);
      CHECK_MESSAGE(d == "", d, " fuse ", fuse);
    }
  }
}

// d(sum of results * fixed weights) for the float arguments; nullptr: there is
// nothing to differentiate.
std::unique_ptr<Graph> gradient_graph(const OpCase& c) {
  auto g = build_graph(c);
  if (has_f64(*g)) return nullptr;
  Builder b(*g);
  Value loss;
  std::vector<Value> outputs(g->outputs().begin(), g->outputs().end());
  for (Value y : outputs) {
    if (!is_float(y.type().dtype)) continue;
    Value flat = b.cast(b.reshape(y, {y.type().numel()}), DType::F32);
    Value weight = b.op(
        Op::Iota, {},
        {{"dtype", DType::F32}, {"shape", std::vector<i64>{y.type().numel()}}});
    weight = b.op(Op::Sin, {weight});
    Value term = b.sum(b.mul(flat, weight), {0});
    loss = loss ? b.add(loss, term) : term;
  }
  std::vector<Value> of = {loss};
  for (Node* a : g->args())
    if (is_float(a->type().dtype)) of.push_back(a->result());
  if (!loss || of.size() == 1) return nullptr;
  Node* d = b.node(Op::Grad, of);
  std::vector<Value> results;
  for (int r = 0; r < d->num_results(); ++r) results.push_back(d->result(r));
  g->set_outputs(results);
  return g;
}

}  // namespace

TEST_CASE("every op compiles through the pipeline, fused and not") {
  auto cases = op_cases();
  auto targets = test_targets();
  for (size_t level = 0; level < targets.size(); ++level) {
    CAPTURE(targets[level].level);
    auto cpu = make_cpu_backend(2, targets[level]);
    for (size_t i = 0; i < cases.size(); ++i) {
      if (at_level(i, level)) check_case(cases[i], *cpu);
      if (level == 0 && runs_in_bf16(cases[i]))
        check_case(in_bf16(cases[i]), *cpu);
    }
  }
}

TEST_CASE("gradients of every op through compiled graphs") {
  auto ref = make_backend("ref", 1);
  std::vector<std::unique_ptr<Backend>> backends;
  for (const Target& t : test_targets())
    backends.push_back(make_cpu_backend(2, t));
  auto cases = op_cases();
  for (size_t index = 0; index < cases.size(); ++index) {
    const OpCase& c = cases[index];
    if (!c.differentiable) continue;
    CAPTURE(c.name);
    auto g = gradient_graph(c);
    if (!g) continue;
    auto in = random_inputs(c);
    auto want = run(*g, *ref, in);
    for (size_t level = 0; level < backends.size(); ++level) {
      if (!at_level(index, level)) continue;
      CAPTURE(level);
      std::vector<Tensor> got;
      try {
        got = run(*g, *backends[level], in);
      } catch (const std::exception& e) {
        FAIL_CHECK(std::string(e.what()));
        continue;
      }
      for (size_t i = 0; i < want.size(); ++i) {
        std::string diff = difference(got[i], want[i], 8 * c.tolerance);
        CHECK_MESSAGE(diff == "", diff);
      }
    }
  }
}

}  // namespace moec
