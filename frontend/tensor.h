// The DSL's value: a handle of one result in the graph that is being traced.
#pragma once
#include <source_location>
#include <string>

#include "ir/graph.h"

namespace moec::dsl {

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(Value v) : value_(v) {}

  Value value() const { return value_; }
  const Type& type() const { return value_.type(); }
  i64 rank() const { return type().rank(); }
  // Size along an axis; a negative axis counts from the end.
  i64 dim(i64 axis) const { return type().dim(axis); }
  DType dtype() const { return type().dtype; }
  explicit operator bool() const { return bool(value_); }

  // Names the value in dumps.
  Tensor named(std::string name) const;

 private:
  Value value_;
};

// A model's parameter: which one of its Parameters (parameters.h). Where a
// Tensor is expected, it stands for that argument of the current trace.
struct Parameter {
  int index = -1;
  explicit operator bool() const { return index >= 0; }
};

// What ops take: a tensor, a parameter or a number, with the line of the
// caller's source.
struct Operand {
  Operand(Tensor t, std::source_location l = std::source_location::current())
      : tensor(t), where(l) {}
  Operand(Parameter p,
          std::source_location l = std::source_location::current());
  Operand(double s, std::source_location l = std::source_location::current())
      : scalar(s), where(l) {}

  Tensor tensor;  // none: the number `scalar`, of the other operand's dtype
  double scalar = 0;
  std::source_location where;
};

}  // namespace moec::dsl
