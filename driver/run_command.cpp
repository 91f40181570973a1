// moec run: one function on tensors of a file.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>

#include "driver/commands.h"
#include "driver/common.h"
#include "ir/text.h"
#include "models/moe/functions.h"
#include "models/moe/model_io.h"
#include "runtime/safetensors.h"
#include "support/error.h"

namespace moec {
namespace {

struct Options : RunFlags {
  std::string source, fn, inputs, outputs;
};

// Copies one input; i64 narrows to i32, as many writers know no other ints.
void copy_input(const Safetensors& file, const TensorSpec& spec,
                std::span<std::byte> out) {
  const TensorEntry* t = file.find(spec.name);
  bool narrow = t && t->dtype == DType::I64 && spec.dtype == DType::I32;
  auto in =
      file.require(spec.name, narrow ? DType::I64 : spec.dtype, spec.dims);
  if (!narrow) {
    std::memcpy(out.data(), in.data(), in.size());
    return;
  }
  for (size_t i = 0; i < out.size() / 4; ++i) {
    int64_t wide;
    std::memcpy(&wide, in.data() + 8 * i, 8);
    auto value = int32_t(wide);
    if (value != wide)
      user_error("{}: {} has {}, which is no i32", file.place(*t), spec.name,
                 wide);
    std::memcpy(out.data() + 4 * i, &value, 4);
  }
}

void write_outputs(moe::Function& f, const std::string& path) {
  std::vector<TensorView> views;
  for (auto& s : f.outputs())
    views.push_back(
        {s.name, s.dtype, s.dims, std::as_bytes(f.output<std::byte>(s.name))});
  write_safetensors(path, views);
}

void run_file(const Options& o, const Safetensors& in) {
  Module m = parse_module(read_file(o.source), o.source);
  if (m.functions.empty()) user_error("{}: has no function", o.source);
  if (o.fn.empty() && m.functions.size() > 1)
    usage_error("{}: has several functions; choose one with --fn", o.source);
  std::unique_ptr<Graph> graph;
  for (auto& f : m.functions)
    if (o.fn.empty() || f->name() == o.fn) graph = std::move(f);
  if (!graph) usage_error("{}: there is no function {}", o.source, o.fn);
  graph->output_names.clear();
  for (size_t i = 0; i < graph->outputs().size(); ++i)
    graph->output_names.push_back(fmt::format("out{}", i));
  moe::Engine engine(engine_options(o));
  auto f = engine.compile(std::move(graph));
  for (auto& s : f.inputs()) copy_input(in, s, f.input<std::byte>(s.name));
  f.run();
  write_outputs(f, o.outputs);
}

void run_model(const Options& o, const Safetensors& in) {
  auto opened = moe::open_model(o.source, o.set);
  moe::Transformer model(opened.config);
  std::string name = o.fn.empty() ? "logits" : o.fn;
  constexpr std::string_view kNames[] = {"logits", "loss", "grad", "encode",
                                         "head"};
  if (std::ranges::find(kNames, name) == std::end(kNames))
    usage_error(
        "--fn {}: functions of a model are logits, loss, grad, encode and head",
        name);
  // What says how many rows and positions there are.
  bool features = name == "head";
  std::string first = features ? "features" : "tokens";
  const TensorEntry* shape = in.find(first);
  if (!shape || shape->dims.size() != (features ? 3 : 2))
    user_error("{}: {} is missing", o.inputs,
               features ? "features f32[B,T,d]" : "tokens i32[B,T]");
  i64 rows = shape->dims[0], seq = shape->dims[1];
  if (rows < 1 || seq < 1)
    user_error("{}: {} is empty", in.place(*shape), first);
  if (seq > opened.config.train.seq)
    user_error("{}: {} has {} positions, and train.seq = {}", in.place(*shape),
               first, seq, opened.config.train.seq);
  moe::State state;
  moe::load_parameters(state, model.parameters(), opened);
  moe::Engine engine(engine_options(o, opened.config));
  auto f = engine.compile(moe::make_function(model, name, rows, seq));
  f.bind(state);
  i64 vocab = opened.config.model.vocab;
  for (auto& s : f.inputs()) {
    if (state.has(s.name)) continue;
    copy_input(in, s, f.input<std::byte>(s.name));
    if (s.dtype != DType::I32) continue;
    i64 low = s.name == "targets" ? -1 : 0;
    for (int32_t id : f.input<int32_t>(s.name))
      if (id < low || id >= vocab)
        user_error("{}: {} has {}, outside the vocabulary of {}", o.inputs,
                   s.name, id, vocab);
  }
  f.run();
  write_outputs(f, o.outputs);
}

void run(const Options& o) {
  Safetensors in(o.inputs);
  if (o.source.ends_with(".ir"))
    run_file(o, in);
  else
    run_model(o, in);
  if (o.json) fmt::print("{{\"outputs\": \"{}\"}}\n", o.outputs);
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("run", "Run one function on given tensors");
  c->add_option("source", o->source, "FILE.ir, checkpoint or config")
      ->required();
  c->add_option("--fn", o->fn,
                "Function; of a model: logits (default), loss or grad");
  c->add_option("--inputs", o->inputs, "Safetensors, named by argument")
      ->required();
  c->add_option("--outputs", o->outputs, "Safetensors to write")->required();
  add_run_flags(*c, *o);
  c->callback([o] { run(*o); });
}

}  // namespace moec
