// Parameters under the names of Hugging Face checkpoints.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "frontend/parameters.h"
#include "models/moe/hf_families.h"

namespace moec::moe {

// "model.layers.0.mlp.experts.*.up_proj.weight" for a stack of experts (* is
// the expert); empty where the family has no such parameter.
std::string hf_name(const HfFamily& family, bool stacked,
                    std::string_view parameter);

// Elements begin .. begin + count of a parameter.
struct HfPiece {
  int parameter = 0;
  int64_t begin = 0, count = 0;
};

// A tensor of a checkpoint: pieces one after another.
struct HfTensor {
  std::string name;
  std::vector<int64_t> dims;
  std::vector<HfPiece> pieces;
};

// All tensors of a model; together they hold every element of every parameter
// once. A UserError names a parameter that the family does not have.
std::vector<HfTensor> hf_tensors(const HfFamily& family, bool stacked,
                                 const dsl::Parameters& params);

}  // namespace moec::moe
