// config.json of a Hugging Face checkpoint and the config that means the same.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/moe/config.h"
#include "models/moe/hf_families.h"
#include "support/dtype.h"

namespace moec::moe {

struct HfConfig {
  const HfFamily* family = nullptr;
  Config config;  // resolved; train.batch = 1, train.seq <= 4096
};

// Reads what transformers 4 and 5 write. A UserError names the field that is
// wrong, that the family does not have, or whose meaning moec does not know.
// Fields that do not matter to the model are passed over.
HfConfig read_hf_config(std::string_view json, const std::string& where);

// The family that has the model, by its QK-norm. A UserError names the first
// key that none of them can express.
const HfFamily& hf_family_of(const Config& config);

// The config.json of a model of that family. `before`, if not empty, is the
// one that the model was imported with: it stays as it is, but for the fields
// that mean something else now. So does its dtype if `dtype` is null.
std::string write_hf_config(const HfFamily& family, const Config& config,
                            std::string_view before, const DType* dtype);

// eos_token_id of a generation_config.json, or, where there is none, of a
// config.json. Ids outside the vocabulary are kept: they match nothing.
std::vector<int32_t> read_hf_eos(std::string_view json,
                                 const std::string& where);

}  // namespace moec::moe
