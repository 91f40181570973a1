// schedule and plan_memory.
#include "ir/builder.h"
#include "ir/text.h"
#include "passes/memory_plan.h"
#include "tests/passes/testing.h"
#include "tests/test.h"

namespace moec {
namespace {

using Space = PlannedSpace;

bool overlap(const BufferSlot& a, const BufferSlot& b) {
  return a.space == Space::Arena && b.space == Space::Arena &&
         a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

// Whether some value read at or after `at` (or through a reshape) is `v`.
bool read_after(Value v, const Node* at, bool self) {
  bool reached = false;
  for (Node* n : v.node->graph()) {
    reached |= n == at;
    if (!reached || (n == at && !self)) continue;
    for (Value o : n->operands())
      if (o == v) return true;
  }
  return false;
}

// No value is overwritten while somebody still reads it.
void check_plan(const Graph& g, const MemoryPlan& plan) {
  std::vector<Value> defined;
  for (Node* n : g) {
    if (n->op() == Op::Return) break;
    for (int r = 0; r < n->num_results(); ++r) {
      Value v = n->result(r);
      const BufferSlot& slot = plan.slots.at(v);
      CHECK(slot.bytes == v.type().bytes());
      CHECK(slot.offset % kBufferAlignment == 0);
      CHECK(slot.offset + slot.bytes <=
            (slot.space == Space::Arena ? plan.arena_bytes : slot.bytes));
      for (Value old : defined) {
        if (!overlap(slot, plan.slots.at(old)) || n->op() == Op::Reshape)
          continue;
        INFO(print(*old.node), " is overwritten by ", print(*n));
        bool in_place = false;
        for (int i = 0; i < n->num_operands(); ++i)
          in_place |= n->operand(i) == old && may_write_in_place(*n, r, i);
        CHECK_FALSE(read_after(old, n, !in_place));
      }
    }
    for (int r = 0; r < n->num_results(); ++r) defined.push_back(n->result(r));
  }
}

constexpr const char* kChain = R"(
func @f(%x: f32[64], %w: f32[64,64]) {
  %a = exp(%x)                 : f32[64]
  %b = mul(%a, %x)             : f32[64]
  %r = reshape(%b) {shape=[1,64]} : f32[1,64]
  %c = matmul(%r, %w)          : f32[1,64]
  %d = add(%c, %r)             : f32[1,64]
  return %d
}
)";

TEST_CASE(
    "elementwise results take their operand's place, reshapes cost none") {
  auto g = parse_graph(kChain);
  MemoryPlan plan = plan_memory(*g);
  check_plan(*g, plan);
  // %a, %b and %r share one buffer; %c becomes %d, the output.
  CHECK(plan.arena_bytes == 256);
  CHECK(plan.slots.at(g->outputs()[0]).space == Space::Output);
  CHECK(plan.copies.empty());
}

TEST_CASE("an output that is named like an argument takes its memory") {
  auto g = parse_graph(R"(
func @step(%p: f32[64], %m: f32[64], %v: f32[64], %g: f32[64], %lr: f32[], %t: f32[], %s: f32[]) {
  %n, %m1, %v1 = adamw(%p, %g, %m, %v, %lr, %t, %s) {beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0} : f32[64], f32[64], f32[64]
  return p = %n, m = %m1, v = %v1
}
)");
  MemoryPlan plan = plan_memory(*g);
  CHECK(plan.donated[0] == 0);
  CHECK(plan.donated[1] == 1);
  CHECK(plan.donated[3] == -1);
  CHECK(plan.arena_bytes == 0);
  CHECK(plan.copies.empty());
}

TEST_CASE("a donated argument that is read after the write is copied late") {
  auto g = parse_graph(R"(
func @late(%p: f32[64], %q: f32[64]) {
  %n = exp(%p)      : f32[64]
  %y = add(%p, %q)  : f32[64]
  return p = %n, y = %y
}
)");
  MemoryPlan plan = plan_memory(*g);
  check_plan(*g, plan);
  CHECK(plan.slots.at(g->outputs()[0]).space == Space::Arena);
  REQUIRE(plan.copies.size() == 1);
  CHECK(plan.copies[0].to.space == Space::Output);
}

TEST_CASE("arguments that change places go through a saved copy") {
  auto g = parse_graph(R"(
func @swap(%a: f32[8], %b: f32[8]) {
  return a = %b, b = %a
}
)");
  MemoryPlan plan = plan_memory(*g);
  REQUIRE(plan.copies.size() == 4);
  CHECK(plan.copies[0].to.space == Space::Arena);
  CHECK(plan.copies[1].to.space == Space::Arena);
  CHECK(plan.copies[2].to.space == Space::Output);
  CHECK(plan.arena_bytes == 128);
}

TEST_CASE("workspaces live during their node only") {
  auto g = parse_graph(kChain);
  auto bytes = [](const Node& n) {
    return n.op() == Op::Matmul ? i64(1000) : i64(0);
  };
  MemoryPlan plan = plan_memory(*g, bytes);
  REQUIRE(plan.workspaces.size() == 1);
  CHECK(plan.arena_bytes == 1024 + 256);
}

// A chain of layers with a residual, its gradient and an update per weight.
std::unique_ptr<Graph> training_graph(int layers) {
  auto graph = std::make_unique<Graph>("train_step");
  Graph& g = *graph;
  Values weights, moments;
  Value x = g.add_arg("x", Type{DType::F32, {8, 32}});
  for (int i = 0; i < layers; ++i)
    for (auto kind : {"w", "m", "v"})
      (kind[0] == 'w' ? weights : moments)
          .push_back(
              g.add_arg(kind + std::to_string(i), Type{DType::F32, {32, 32}}));
  Value lr = g.add_arg("lr", Type{DType::F32, {}});
  Builder b(g);
  Value y = x;
  for (Value w : weights) y = b.add(y, b.op(Op::Gelu, {b.matmul(y, w)}));
  Value loss = b.sum(b.mul(y, y), {0, 1});
  Values asked{loss};
  asked.insert(asked.end(), weights.begin(), weights.end());
  Node* d = b.node(Op::Grad, asked);
  Values outputs;
  std::vector<std::string> names;
  for (int i = 0; i < layers; ++i) {
    Value w = weights[i], m = moments[2 * i], v = moments[2 * i + 1];
    Node* step = b.node(Op::AdamW, Values{w, d->result(i), m, v, lr, lr, lr},
                        {{"beta1", 0.9},
                         {"beta2", 0.999},
                         {"eps", 1e-8},
                         {"weight_decay", 0.0}});
    for (int r = 0; r < 3; ++r) {
      outputs.push_back(step->result(r));
      names.push_back("wmv"[r] + std::to_string(i));
    }
  }
  outputs.push_back(loss);
  names.push_back("loss");
  g.set_outputs(outputs, names);
  return graph;
}

TEST_CASE("schedule lowers the peak of a training step, and it stays right") {
  auto g = training_graph(8);
  PassContext ctx;
  run_passes(*g, {"canonicalize", "grad", "canonicalize", "fold", "cse", "dce"},
             ctx);
  auto before = g->clone();
  MemoryPlan plain = plan_memory(*g);
  run_passes(*g, {"schedule"}, ctx);
  MemoryPlan planned = plan_memory(*g);
  check_plan(*g, planned);
  CHECK(planned.copies.empty());
  CHECK(planned.arena_bytes < plain.arena_bytes);
  CHECK(double(planned.arena_bytes) <= 1.02 * double(planned.live_bytes));
  MESSAGE("arena of 8 layers: ", plain.arena_bytes >> 10, " KiB as made, ",
          planned.arena_bytes >> 10, " KiB scheduled, ",
          planned.live_bytes >> 10, " KiB alive");
  auto inputs = random_inputs(*g, 2);
  CHECK(max_difference(interpret(*before, inputs), interpret(*g, inputs)) == 0);
  CHECK(structural_key(*g) != structural_key(*before));
  // The same order comes again: nothing is left to the hash tables.
  auto again = before->clone();
  run_passes(*again, {"schedule"}, ctx);
  CHECK(print(*again) == print(*g));
}

// A deep chain whose activations are cheap to make again from its products.
TEST_CASE("remat lowers the peak and changes no bit") {
  Graph g("train");
  Value x = g.add_arg("x", Type{DType::F32, {64, 64}});
  Values weights;
  for (int i = 0; i < 6; ++i)
    weights.push_back(
        g.add_arg("w" + std::to_string(i), Type{DType::F32, {64, 64}}));
  Value gain = g.add_arg("gain", Type{DType::F32, {64}});
  Builder b(g);
  Value y = x;
  for (Value w : weights) {
    Value h = b.op(Op::Silu, {b.matmul(y, w)});
    y = b.node(Op::RmsNorm, Values{h, gain}, {{"eps", 1e-6}})->result();
  }
  Values asked{b.sum(b.mul(y, y), {0, 1})};
  asked.insert(asked.end(), weights.begin(), weights.end());
  Node* d = b.node(Op::Grad, asked);
  Values outputs;
  for (int i = 0; i < d->num_results(); ++i) outputs.push_back(d->result(i));
  g.set_outputs(outputs);

  auto kept = g.clone(), dropped = g.clone();
  PassContext ctx;
  ctx.options.fuse = FusionSet::none();
  run_pipeline(*kept, ctx);
  ctx.options.remat = true;
  run_pipeline(*dropped, ctx);
  i64 before = plan_memory(*kept).live_bytes;
  i64 after = plan_memory(*dropped).live_bytes;
  MESSAGE("alive: ", before >> 10, " KiB kept, ", after >> 10, " KiB remat");
  CHECK(double(after) < 0.8 * double(before));
  auto inputs = random_inputs(*kept, 3);
  CHECK(max_difference(interpret(*kept, inputs), interpret(*dropped, inputs)) ==
        0);
}

}  // namespace
}  // namespace moec
