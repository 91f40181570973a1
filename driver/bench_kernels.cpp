#include "driver/bench_kernels.h"

#include <CLI/CLI.hpp>

#include "codegen/cpu/attention_bench.h"
#include "codegen/cpu/bench_turns.h"
#include "codegen/cpu/jit.h"
#include "codegen/cpu/matmul_bench.h"
#include "codegen/cpu/moe_bench.h"
#include "codegen/cpu/ops_bench.h"
#include "driver/bench_table.h"

namespace moec {
namespace {

struct KernelFlags {
  std::string dtype = "f32", only, against;
  double seconds = 0.2;
  bool json = false, growth = false;

  bool bf16() const { return dtype == "bf16"; }
  bool wants(const std::string& name) const {
    return name.find(only) != std::string::npos;
  }
};

void run_ops(const KernelFlags& o) {
  KernelLibrary library(host_target());
  BenchTable table(o.dtype, o.json);
  table.section("matmul MxNxK", "matmul");
  for (const MatmulShape& s : bench_matmul_shapes(o.bf16()))
    if (o.wants(matmul_name(s))) table.add(bench_matmul(library, s, o.seconds));
  table.section("other operations", "ops");
  for (const OpShape& s : bench_op_shapes(o.bf16()))
    if (o.wants(s.name)) table.add(bench_op(library, s, o.bf16(), o.seconds));
  table.finish();
}

void run_attention(const KernelFlags& o) {
  KernelLibrary library(host_target());
  BenchTable table(o.dtype, o.json);
  table.section("attention", "attention");
  for (const AttentionSpec& s : bench_attention_shapes(o.bf16()))
    if (o.wants(attention_name(s)))
      for (const BenchRow& r : bench_attention(library, s, o.seconds))
        table.add(r);
  table.finish();
}

void run_moe(const KernelFlags& o) {
  KernelLibrary library(host_target());
  BenchTable table(o.dtype, o.json);
  auto section = [&](const char* title, const char* key,
                     const std::vector<MoeShape>& shapes, bool dense) {
    table.section(title, key);
    for (const MoeShape& s : shapes)
      if (o.wants(moe_name(s)))
        for (const BenchRow& r :
             bench_moe(library, s, o.bf16(), o.seconds, dense))
          table.add(r);
  };
  section("experts (tokens, dim, hidden, experts, top k), SwiGLU", "moe",
          bench_moe_shapes(), true);
  if (o.growth)
    section("growth with experts and tokens", "growth", bench_moe_growth(),
            false);
  table.finish();
}

// Starts the other build, if one is named, on the command `name`.
void start_against(const KernelFlags& o, const char* name) {
  if (o.against.empty()) return;
  std::vector<std::string> args = {"bench",  name,   "--dtype",   o.dtype,
                                   "--only", o.only, "--seconds", "0"};
  if (o.growth) args.push_back("--growth");
  lead_bench_turns(o.against, std::move(args));
}

CLI::App* add_kernel_bench(CLI::App& bench, const char* name, const char* what,
                           const std::shared_ptr<KernelFlags>& o,
                           void (*run)(const KernelFlags&)) {
  auto* c = bench.add_subcommand(name, what);
  c->add_option("--dtype", o->dtype, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}));
  c->add_option("--only", o->only, "Rows whose name contains this");
  c->add_option("--seconds", o->seconds, "Time spent on each row")
      ->check(CLI::Range(0.0, 600.0));
  c->add_flag("--json", o->json, "One JSON object as the last line of stdout");
  c->add_option("--against", o->against,
                "Another build of moec, which times the same rows in turn; a "
                "column says how much faster this one is")
      ->check(CLI::ExistingFile);
  c->callback([o, name, run] {
    start_against(*o, name);
    run(*o);
  });
  return c;
}

}  // namespace

void add_bench_ops(CLI::App& bench) {
  add_kernel_bench(bench, "ops",
                   "Matrix products, the loss, AdamW, norms and others",
                   std::make_shared<KernelFlags>(), run_ops);
}

void add_bench_attention(CLI::App& bench) {
  add_kernel_bench(bench, "attention", "Attention, forward and backward",
                   std::make_shared<KernelFlags>(), run_attention);
}

void add_bench_moe(CLI::App& bench) {
  auto o = std::make_shared<KernelFlags>();
  auto* c = add_kernel_bench(
      bench, "moe", "Experts beside a dense layer of equal active weights", o,
      run_moe);
  c->add_flag("--growth", o->growth, "Also 8 -> 64 experts, 2x the tokens");
}

}  // namespace moec
