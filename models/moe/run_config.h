// How a run begins: from a config, or where an earlier process left it.
#pragma once
#include <filesystem>
#include <optional>

#include "models/moe/data.h"
#include "models/moe/hf_checkpoint.h"
#include "models/moe/trainer.h"
#include "runtime/checkpoint.h"

namespace moec::moe {

struct RunStart {
  Config config;  // with its vocabulary
  Corpus corpus;
  std::optional<Checkpoint> checkpoint;  // to resume from
  std::optional<HfCarried> hf;           // of an imported model
};

// Opens data and, for a resume, the newest valid checkpoint, whose config must
// agree with the given one in all that decides the losses: a UsageError names
// the keys that differ. Writes FOLDER/config.toml.
RunStart start_run(const TrainOptions& options,
                   const std::filesystem::path& folder);

}  // namespace moec::moe
