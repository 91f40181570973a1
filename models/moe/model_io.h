// Models on disk: configs and checkpoints as CONFIG|CKPT of the commands.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "models/moe/config.h"
#include "models/moe/engine.h"
#include "models/moe/hf_checkpoint.h"
#include "models/moe/transformer.h"
#include "runtime/checkpoint.h"
#include "tokenizer/tokenizer.h"

namespace moec::moe {

struct OpenedModel {
  Config config;  // model.vocab is known
  std::optional<Checkpoint> checkpoint;
  std::optional<Tokenizer> tokenizer;
  std::optional<HfCarried> hf;  // of an imported model
};

// A config file (*.toml), a step folder or a run folder (its newest valid
// step). A config without model.vocab takes that of its tokenizer, for which
// its data is read; otherwise no data is opened.
OpenedModel open_model(const std::filesystem::path& path,
                       const std::vector<std::string>& overrides = {});

// Adds the parameters to `state`: the checkpoint's, or initial values from
// train.seed. A UserError names the tensor that is missing, has another shape
// or is not the model's.
void load_parameters(State& state, const dsl::Parameters& params,
                     const OpenedModel& model);
// The same for functions that only read them: files are mapped rather than
// copied where tensors lie aligned, and weights are stored in bf16 if
// train.dtype or the checkpoint says so; the model's functions take them as
// they are.
void load_for_inference(State& state, Transformer& transformer,
                        const OpenedModel& model);
// Reads parameters that `state` already holds.
void read_parameters(State& state, const dsl::Parameters& params,
                     const std::filesystem::path& file);

// Adds the moments of the optimizer, zero, or as in the checkpoint's file.
void add_moments(State& state, const dsl::Parameters& params);
void read_moments(State& state, const dsl::Parameters& params,
                  const std::filesystem::path& file);

// What a checkpoint's two tensor files hold.
std::vector<TensorView> parameter_views(const State& state,
                                        const dsl::Parameters& params);
std::vector<TensorView> moment_views(const State& state,
                                     const dsl::Parameters& params);
// The config.toml of a checkpoint: without the path of the data.
std::string checkpoint_config(const Config& config);

}  // namespace moec::moe
