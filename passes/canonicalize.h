// The rules of the pass canonicalize, by family of ops; each is a Rule
// (passes/rewrite.h) for one node.
#pragma once
#include "ir/builder.h"

namespace moec {

Value canonicalize_elementwise(Builder&, Node&);
Value canonicalize_shape(Builder&, Node&);
Value canonicalize_reduction(Builder&, Node&);
Value canonicalize_matmul(Builder&, Node&);

}  // namespace moec
