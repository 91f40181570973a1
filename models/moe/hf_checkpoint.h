// Checkpoints of Hugging Face's transformers, in and out. Tensors stay mapped:
// no more of a model is in memory than the part that is being written.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/moe/hf_families.h"
#include "support/dtype.h"

namespace moec::moe {

// What an imported model brought that moec has no use for and gives back:
// hf.json of its checkpoints.
struct HfCarried {
  bool stacked = false;        // experts were stacked
  bool tied_head = false;      // a tied lm_head.weight was written out
  std::optional<DType> dtype;  // of all tensors; none: mixed
  // Texts of config.json and of the other small files.
  std::map<std::string, std::string> files;

  const std::string& file(const std::string& name) const;  // "": none
};
std::string to_json(const HfCarried& carried);
// A UserError `where:offset: reason`.
HfCarried parse_hf_carried(std::string_view json, const std::string& where);

// The family of an imported model.
const HfFamily& hf_family_of(const HfCarried& carried);
// Tokens that end a text: those of generation_config.json, or of config.json.
std::vector<int32_t> hf_eos(const HfCarried& carried);

struct HfReport {
  std::string family;
  int64_t tensors = 0, bytes = 0;
  int files = 0;  // of tensors
  std::vector<std::string> notes;
};

// Reads config.json, one or many safetensors files, generation_config.json and
// tokenizer.json of `from` and writes the step folder `to`. Every tensor is
// accounted for by name, shape and type; a UserError lists those that are not.
HfReport import_hf(const std::filesystem::path& from,
                   const std::filesystem::path& to);

struct HfExportOptions {
  int64_t shard_bytes = 5'000'000'000;  // of tensors in a file, if they fit
};

// Writes the model of a checkpoint as a new folder `to`. A UserError names the
// config key that no family can express.
HfReport export_hf(const std::filesystem::path& checkpoint,
                   const std::filesystem::path& to,
                   const HfExportOptions& options = {});

}  // namespace moec::moe
