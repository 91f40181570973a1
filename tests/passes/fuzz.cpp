#include "tests/passes/fuzz.h"

#include <random>

#include "ir/builder.h"

namespace moec {
namespace {

constexpr i64 kRows = 6, kCols = 8;

class Generator {
 public:
  Generator(uint64_t seed, Graph& g) : rng_(seed), b_(g) {
    for (Dims d : {Dims{kRows, kCols}, Dims{kRows, kCols}, Dims{kCols},
                   Dims{kRows, 1}, Dims{kCols, kCols}}) {
      args_.push_back(
          g.add_arg("x" + std::to_string(args_.size()), {DType::F32, d}));
      values_.push_back(args_.back());
    }
  }

  void step() { keep(make()); }

  // Every value that nothing reads is part of the loss.
  Value loss() {
    Value sum;
    for (Value v : values_) {
      if (!v.node->users().empty() || v.node->op() == Op::Arg) continue;
      std::vector<i64> axes;
      for (i64 i = 0; i < v.type().rank(); ++i) axes.push_back(i);
      Value part = axes.empty() ? v : b_.mean(v, axes);
      sum = sum ? b_.add(sum, part) : part;
    }
    return sum;
  }
  const Values& args() const { return args_; }

 private:
  int below(int n) { return int(rng_() % uint64_t(n)); }
  void keep(Value v) { values_.push_back(v); }
  Value any() { return values_[below(int(values_.size()))]; }

  // One of the last values of that shape, or an argument.
  Value of_shape(const Dims& d) {
    for (int tries = 0; tries < 8; ++tries)
      if (Value v = any(); v.type().dims == d) return v;
    return d == Dims{kRows, kCols} ? args_[below(2)] : args_[4];
  }
  Value full() { return of_shape({kRows, kCols}); }

  // Keeps numbers where every op is smooth and none explodes.
  Value tame(Value v) { return b_.op(Op::Tanh, {v}); }

  Value make() {
    switch (below(14)) {
      case 0: return unary(any());
      case 1:
      case 2:
      case 3: return binary();
      case 4: return b_.softmax(full());
      case 5: return b_.mean(full(), {1}, below(2) == 0);
      case 6: return b_.mean(full(), {0}, below(2) == 0);
      case 7:
        return b_.node(Op::RmsNorm, Values{full(), args_[2]}, {{"eps", 0.1}})
            ->result();
      case 8: return tame(b_.matmul(full(), of_shape({kCols, kCols})));
      case 9: {
        Value t = b_.transpose(full(), {1, 0});
        return below(2) ? t : tame(b_.matmul(t, full()));
      }
      case 10: return b_.reshape(full(), {2, kRows / 2, kCols});
      case 11: return select();
      case 12: return b_.op(Op::LogSumExp, {full()}, {{"axis", i64(-1)}});
      default: return b_.mul(any(), 0.25 * (1 + below(8)));
    }
  }

  Value unary(Value v) {
    constexpr Op kOps[] = {Op::Tanh, Op::Silu, Op::Gelu, Op::Sigmoid,
                           Op::Neg,  Op::Sin,  Op::Exp,  Op::Softplus};
    Op op = kOps[below(8)];
    return b_.op(op, {op == Op::Exp ? tame(v) : v});
  }

  bool fits(const Dims& a, const Dims& b) {
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      i64 x = a[a.size() - 1 - i], y = b[b.size() - 1 - i];
      if (x != y && x != 1 && y != 1) return false;
    }
    return true;
  }

  Value binary() {
    Value x = any(), y = any();
    if (!fits(x.type().dims, y.type().dims)) y = x;
    constexpr Op kOps[] = {Op::Add, Op::Sub, Op::Mul};
    Value v = b_.op(kOps[below(3)], {x, y});
    return below(3) ? v : tame(v);
  }

  Value select() {
    Value x = full();
    Value positive = b_.compare(x, b_.scalar(0), "gt");
    return b_.select(positive, full(), b_.mul(x, 0.5));
  }

  std::mt19937_64 rng_;
  Builder b_;
  Values args_;
  std::vector<Value> values_;
};

}  // namespace

std::unique_ptr<Graph> random_graph(uint64_t seed, int nodes, bool gradients) {
  auto g = std::make_unique<Graph>("fuzz");
  Generator make(seed, *g);
  for (int i = 0; i < nodes; ++i) make.step();
  Value loss = make.loss();
  Values outputs{loss};
  if (gradients) {
    Values asked{loss};
    asked.insert(asked.end(), make.args().begin(), make.args().end());
    Node* d = Builder(*g).node(Op::Grad, asked);
    for (int i = 0; i < d->num_results(); ++i) outputs.push_back(d->result(i));
  }
  g->set_outputs(outputs);
  return g;
}

}  // namespace moec
