// The interpreter behind the same interface as the compiled devices.
#include "codegen/backend.h"
#include "codegen/tensor_io.h"
#include "ir/interpreter.h"
#include "ir/text.h"
#include "passes/memory_plan.h"
#include "support/error.h"

namespace moec {
namespace {

class ReferenceFunction : public CompiledFunction {
 public:
  ReferenceFunction(std::unique_ptr<Graph> g, Precision p)
      : graph_(std::move(g)), precision_(p) {
    inputs_ = input_specs(*graph_);
    outputs_ = output_specs(*graph_);
    donated_.assign(inputs_.size(), -1);
    auto args = donated_args(*graph_);
    for (size_t o = 0; o < args.size(); ++o)
      if (args[o] >= 0) donated_[args[o]] = int32_t(o);
    for (Node* n : *graph_)
      if (n->op() != Op::Arg && n->op() != Op::Return) ++info_.launches;
  }

  void run(std::span<const Bytes> inputs,
           std::span<const Bytes> outputs) override {
    MOEC_CHECK(inputs.size() == inputs_.size() &&
               outputs.size() == outputs_.size());
    std::vector<Tensor> args;
    for (size_t i = 0; i < inputs.size(); ++i)
      args.push_back(load_tensor(graph_->args()[i]->type(), inputs[i]));
    auto out = interpret(*graph_, args, precision_, observer());
    for (size_t i = 0; i < out.size(); ++i) store_tensor(out[i], outputs[i]);
  }
  void set_watch(Watch w) override { watch_ = std::move(w); }

 private:
  Observer observer() const {
    if (!watch_) return {};
    return [this](const Node& n, absl::Span<const Tensor> results) {
      for (const Tensor& t : results)
        if (is_float(t.type.dtype))
          watch_({label_of(n), source_of(n), DType::F64,
                  std::as_bytes(std::span(t.data))});
    };
  }

  std::unique_ptr<Graph> graph_;
  Precision precision_;
  Watch watch_;
};

class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(bool f64) : f64_(f64) {}
  std::string_view name() const override { return f64_ ? "ref64" : "ref"; }
  bool supports(const Node&) const override { return true; }
  std::unique_ptr<CompiledFunction> lower(std::unique_ptr<Graph> g) override {
    return std::make_unique<ReferenceFunction>(
        std::move(g), f64_ ? Precision::F64 : Precision::Typed);
  }

 private:
  bool f64_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(bool f64) {
  return std::make_unique<ReferenceBackend>(f64);
}

}  // namespace moec
