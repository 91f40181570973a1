// Checkpoints of a run: folders RUN/step-N with model.safetensors,
// optimizer.safetensors (if there is optimizer state), config.toml,
// tokenizer.json (if there is one), hf.json (what an imported model brought
// that moec has no use for) and manifest.json, which states the format, the
// step, the data cursor, and size and hash of every other file. No time, path
// or thread count is in any of them: equal runs give equal bytes.
//
// A folder appears by one rename, complete and synced; a crash at any moment
// leaves the older ones, and never a half one, under these names.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/safetensors.h"
#include "support/function_ref.h"

namespace moec {

struct CheckpointContent {
  int64_t step = 0;                // steps completed
  int64_t cursor = 0;              // batches taken from the data
  std::optional<double> val_loss;  // of the latest evaluation
  std::span<const TensorView> model, optimizer;
  std::string config_toml;
  std::string tokenizer_json, hf_json;  // empty: no file
};

// A step folder whose manifest and files were found whole.
struct Checkpoint {
  std::filesystem::path folder;
  int64_t step = 0, cursor = 0;
  std::optional<double> val_loss;

  std::filesystem::path model() const { return folder / "model.safetensors"; }
  std::filesystem::path optimizer() const {
    return folder / "optimizer.safetensors";
  }
  bool has_optimizer() const { return std::filesystem::exists(optimizer()); }
  std::filesystem::path config() const { return folder / "config.toml"; }
  std::filesystem::path tokenizer() const { return folder / "tokenizer.json"; }
  bool has_tokenizer() const { return std::filesystem::exists(tokenizer()); }
  std::filesystem::path hf() const { return folder / "hf.json"; }
  bool has_hf() const { return std::filesystem::exists(hf()); }
};

// Writes RUN/step-N; one that is already there is replaced whole. A UserError
// (a full disk, say) leaves everything as it was.
Checkpoint save_checkpoint(const std::filesystem::path& run,
                           const CheckpointContent& content);

// Has `write` fill a folder and puts it at exactly this path, whole or not at
// all; the path must not exist yet or be an empty folder. Returns the path
// without a slash at its end.
std::filesystem::path write_new_folder(
    const std::filesystem::path& folder,
    FunctionRef<void(const std::filesystem::path&)> write);

// Writes one step folder in that way.
Checkpoint save_step_folder(const std::filesystem::path& folder,
                            const CheckpointContent& content);

// Checks a step folder; the UserError names the file and what is wrong.
Checkpoint open_step_folder(const std::filesystem::path& folder);

// The newest valid checkpoint of a run, if any. `skipped` hears why each newer
// one was passed over.
std::optional<Checkpoint> newest_checkpoint(
    const std::filesystem::path& run,
    const std::function<void(const std::string&)>& skipped = {});

// CKPT of the command line: a step folder or a run folder. A UserError if
// there is nothing valid, with the reasons.
Checkpoint open_checkpoint(
    const std::filesystem::path& path,
    const std::function<void(const std::string&)>& skipped = {});

// Steps of the folders step-N, ascending, valid or not.
std::vector<int64_t> checkpoint_steps(const std::filesystem::path& run);

// Deletes old step folders, except the newest `keep` (>= 1; 0 keeps all) and
// the one with the lowest val_loss. Only checkpoints that are older than a
// valid one are ever deleted.
void prune_checkpoints(const std::filesystem::path& run, int64_t keep);

// Removes what a killed save or prune left behind. Only for the run's owner.
void clean_checkpoints(const std::filesystem::path& run);

}  // namespace moec
