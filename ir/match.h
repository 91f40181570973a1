// Patterns over values, as run-time objects, that can say why they did not
// match:
//
//   Value q, k; Node* scores;
//   auto p = m::op(Op::Softmax,
//                  {m::op(Op::Matmul, {m::any(&q), m::any(&k)})
//                       .attr("transpose_b", true).node(&scores).one_use()})
//                .attr("axis", i64{-1});
//   std::string why;
//   if (!m::match(value, p, &why)) log("softmax %p has 2 users");
//
// Captures are written only when the whole pattern matches.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ir/graph.h"

namespace moec::m {

class Pattern {
 public:
  // The value has exactly one use.
  Pattern one_use() const;
  // Binary op: the operands may also stand the other way round.
  Pattern commutative() const;
  Pattern attr(std::string name, AttrValue) const;
  // `text` completes the sentence "%v does not match: it ...".
  Pattern where(std::function<bool(const Node&)>, std::string text) const;
  Pattern value(Value* capture) const;
  Pattern node(Node** capture) const;
  // Which result of its node the value is (0 unless said).
  Pattern result(int index) const;

 private:
  struct Impl;
  struct Matcher;
  using Ptr = std::shared_ptr<const Impl>;
  explicit Pattern(Ptr impl) : impl_(std::move(impl)) {}
  template <typename F>
  Pattern with(F change) const;

  Ptr impl_;

  friend Pattern any(Value*);
  friend Pattern op(Op, std::vector<Pattern>);
  friend Pattern op(Op);
  friend Pattern one_of(std::vector<Pattern>);
  friend Pattern splat(double*);
  friend Pattern same(const Value*);
  friend bool match(Value, const Pattern&, std::string*);
};

// Any value.
Pattern any(Value* capture = nullptr);
// A result of that op, with these operands; without a list, any operands.
Pattern op(Op, std::vector<Pattern> operands);
Pattern op(Op);
// The first that matches.
Pattern one_of(std::vector<Pattern>);
// A constant, or a broadcast or reshape of one.
Pattern splat(double* capture = nullptr);
// The value that `capture` of an earlier part of the pattern stands for.
Pattern same(const Value* capture);

// On failure `why` (if given) says it for the part that got furthest.
bool match(Value, const Pattern&, std::string* why = nullptr);

// The number that every element of `v` is, if that is known.
bool is_splat(Value v, double* number = nullptr);

}  // namespace moec::m
