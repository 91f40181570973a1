#include "ir/match.h"

#include <fmt/format.h>

#include <optional>

#include "ir/op_def.h"
#include "ir/text.h"
#include "support/error.h"

namespace moec::m {
namespace {

enum class Kind : uint8_t { Any, Op, OneOf, Splat, Same };

struct Check {
  std::function<bool(const Node&)> holds;
  std::string text;
};

std::string describe(Value v) { return fmt::format("`{}`", print(*v.node)); }

}  // namespace

struct Pattern::Impl {
  Kind kind = Kind::Any;
  moec::Op op = moec::Op::Arg;
  bool any_operands = false, commutative = false, one_use = false;
  int result = 0;
  std::vector<Pattern> operands;  // of Op; the choices of OneOf
  std::vector<Check> checks;
  Value* value = nullptr;
  Node** node = nullptr;
  double* number = nullptr;
  const Value* same = nullptr;
};

// One attempt. Captures are collected on a trail, which is cut back when an
// alternative fails.
struct Pattern::Matcher {
  std::vector<std::pair<Value*, Value>> values;
  std::vector<std::pair<Node**, Node*>> nodes;
  std::vector<std::pair<double*, double>> numbers;
  std::string why;
  int furthest = -1;

  bool fail(int depth, auto&& reason) {
    if (depth > furthest) {
      furthest = depth;
      why = reason();
    }
    return false;
  }

  bool operands(Value v, const Impl& p, int depth, bool swapped) {
    size_t n = p.operands.size();
    for (size_t i = 0; i < n; ++i) {
      size_t at = swapped ? n - 1 - i : i;
      if (!run(v.node->operand(int(at)), *p.operands[i].impl_, depth + 1))
        return false;
    }
    return true;
  }

  bool attempt(auto&& body) {
    size_t a = values.size(), b = nodes.size(), c = numbers.size();
    if (body()) return true;
    values.resize(a);
    nodes.resize(b);
    numbers.resize(c);
    return false;
  }

  bool run_op(Value v, const Impl& p, int depth) {
    if (v.node->op() != p.op)
      return fail(depth, [&] {
        return fmt::format("{} is not {}", describe(v), op_name(p.op));
      });
    if (v.index != p.result)
      return fail(depth, [&] {
        return fmt::format("result {} of {} is used, not result {}", v.index,
                           describe(v), p.result);
      });
    for (const Check& c : p.checks)
      if (!c.holds(*v.node))
        return fail(depth,
                    [&] { return fmt::format("{} {}", describe(v), c.text); });
    if (p.any_operands) return true;
    if (v.node->num_operands() != int(p.operands.size()))
      return fail(depth, [&] {
        return fmt::format("{} has {} operands, not {}", describe(v),
                           v.node->num_operands(), p.operands.size());
      });
    if (attempt([&] { return operands(v, p, depth, false); })) return true;
    return p.commutative && p.operands.size() == 2 &&
           attempt([&] { return operands(v, p, depth, true); });
  }

  bool run_same(Value v, const Impl& p, int depth) {
    for (auto& [capture, value] : values)
      if (capture == p.same)
        return value == v || fail(depth, [&] {
                 return fmt::format("{} is not the same value as {}",
                                    describe(v), describe(value));
               });
    MOEC_CHECK(false, "m::same refers to a value captured later");
    return false;
  }

  bool run_kind(Value v, const Impl& p, int depth) {
    switch (p.kind) {
      case Kind::Any: break;
      case Kind::Op: return run_op(v, p, depth);
      case Kind::OneOf:
        for (const Pattern& choice : p.operands)
          if (attempt([&] { return run(v, *choice.impl_, depth); }))
            return true;
        return false;
      case Kind::Splat: {
        double x = 0;
        if (!is_splat(v, &x))
          return fail(depth, [&] {
            return fmt::format("{} is not a constant", describe(v));
          });
        if (p.number) numbers.emplace_back(p.number, x);
        break;
      }
      case Kind::Same: return run_same(v, p, depth);
    }
    for (const Check& c : p.checks)
      if (!c.holds(*v.node))
        return fail(depth,
                    [&] { return fmt::format("{} {}", describe(v), c.text); });
    return true;
  }

  bool run(Value v, const Impl& p, int depth) {
    // The right op with a second user is the more telling failure, so the
    // kind is looked at first.
    if (!run_kind(v, p, depth)) return false;
    if (p.one_use && v.node->num_uses(v.index) != 1)
      return fail(depth + 1, [&] {
        return fmt::format("{} has {} users, not 1", describe(v),
                           v.node->num_uses(v.index));
      });
    if (p.value) values.emplace_back(p.value, v);
    if (p.node) nodes.emplace_back(p.node, v.node);
    return true;
  }
};

template <typename F>
Pattern Pattern::with(F change) const {
  auto impl = std::make_shared<Impl>(*impl_);
  change(*impl);
  return Pattern(std::move(impl));
}

Pattern Pattern::one_use() const {
  return with([](Impl& p) { p.one_use = true; });
}

Pattern Pattern::commutative() const {
  return with([](Impl& p) { p.commutative = true; });
}

Pattern Pattern::attr(std::string name, AttrValue want) const {
  auto text = fmt::format("does not have {}={}", name, to_string(want));
  return where(
      [name = std::move(name), want = std::move(want)](const Node& n) {
        for (auto& [key, value] : n.attr_list())
          if (key == name) return value == want;
        return false;
      },
      std::move(text));
}

Pattern Pattern::where(std::function<bool(const Node&)> holds,
                       std::string text) const {
  return with([&](Impl& p) {
    p.checks.push_back({std::move(holds), std::move(text)});
  });
}

Pattern Pattern::value(Value* capture) const {
  return with([&](Impl& p) { p.value = capture; });
}

Pattern Pattern::node(Node** capture) const {
  return with([&](Impl& p) { p.node = capture; });
}

Pattern Pattern::result(int index) const {
  return with([&](Impl& p) { p.result = index; });
}

Pattern any(Value* capture) {
  auto impl = std::make_shared<Pattern::Impl>();
  impl->value = capture;
  return Pattern(std::move(impl));
}

Pattern op(Op o, std::vector<Pattern> operands) {
  auto impl = std::make_shared<Pattern::Impl>();
  impl->kind = Kind::Op;
  impl->op = o;
  impl->operands = std::move(operands);
  return Pattern(std::move(impl));
}

Pattern op(Op o) {
  return op(o, {}).with([](Pattern::Impl& p) { p.any_operands = true; });
}

Pattern one_of(std::vector<Pattern> choices) {
  auto impl = std::make_shared<Pattern::Impl>();
  impl->kind = Kind::OneOf;
  impl->operands = std::move(choices);
  return Pattern(std::move(impl));
}

Pattern splat(double* capture) {
  auto impl = std::make_shared<Pattern::Impl>();
  impl->kind = Kind::Splat;
  impl->number = capture;
  return Pattern(std::move(impl));
}

Pattern same(const Value* capture) {
  auto impl = std::make_shared<Pattern::Impl>();
  impl->kind = Kind::Same;
  impl->same = capture;
  return Pattern(std::move(impl));
}

bool match(Value v, const Pattern& p, std::string* why) {
  Pattern::Matcher attempt;
  if (!attempt.run(v, *p.impl_, 0)) {
    if (why) *why = std::move(attempt.why);
    return false;
  }
  for (auto& [capture, value] : attempt.values) *capture = value;
  for (auto& [capture, node] : attempt.nodes) *capture = node;
  for (auto& [capture, number] : attempt.numbers) *capture = number;
  return true;
}

bool is_splat(Value v, double* number) {
  while (v.node->op() == Op::Broadcast || v.node->op() == Op::Reshape)
    v = v.node->operand(0);
  if (v.node->op() != Op::Constant) return false;
  if (number) *number = v.node->f("value");
  return true;
}

}  // namespace moec::m
