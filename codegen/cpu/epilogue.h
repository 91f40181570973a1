// The elementwise part of a fusion whose body starts with a product, as
// matmul and combine kernels take it (pass fuse-epilogue).
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "codegen/cpu/emit.h"
#include "codegen/cpu/matmul.h"
#include "ir/graph.h"

namespace moec {

// Called on vectors of the product: its value and the extras' at the same
// place; returns one value per output. `key` determines it.
struct Epilogue {
  std::string key;
  double cost = 0;  // vector additions
  std::function<Vs(Emit&, V product, std::span<V const> extras)> emit;
};

// A fusion of kind "matmul" or "experts", taken apart.
struct ProductFusion {
  std::shared_ptr<const Graph> body;  // owned: kernels outlive the graph
  const Node* product = nullptr;      // in the body
  std::vector<int> operands;  // of the fusion: the product's, in its order
  std::vector<int> extras;    // of the fusion: those that the epilogue reads
  std::vector<int> outputs;   // of the fusion: those that the epilogue writes
  // The fusion's result that is result `r` of the product as it is, or -1.
  int result_of(int r) const;
  Epilogue epilogue() const;
};
ProductFusion take_apart(const Node& fusion);

// Where an operand of the epilogue lies beside a product of `cols` columns:
// an element for each of the product's, for each column, each row, or one.
MatmulOperand beside_product(int buffer, const Type& t, i64 cols);

}  // namespace moec
