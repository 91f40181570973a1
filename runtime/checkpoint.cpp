#include "runtime/checkpoint.h"

#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "support/error.h"
#include "support/hash.h"
#include "support/json.h"

namespace moec {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

constexpr const char* kManifest = "manifest.json";
constexpr const char* kFormat = "moec-checkpoint-1";
// Folders of these names are unfinished or on their way out.
constexpr std::string_view kTemp = ".tmp-", kTrash = ".trash-";

std::string step_name(int64_t step) { return fmt::format("step-{}", step); }

std::optional<int64_t> parse_step(const std::string& name) {
  if (!name.starts_with("step-")) return std::nullopt;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  auto r = std::from_chars(name.data() + 5, end, step);
  // "step-007" is no name that moec gives.
  if (r.ec != std::errc() || r.ptr != end || step < 0 ||
      step_name(step) != name)
    return std::nullopt;
  return step;
}

std::string hash_of(const fs::path& file) {
  return hash_bytes(MappedFile(file).bytes()).hex();
}

std::string manifest_text(const fs::path& folder, const CheckpointContent& c) {
  // nlohmann::json sorts keys: one text for one content.
  json files = json::object();
  for (auto& e : fs::directory_iterator(folder))
    files[e.path().filename().string()] = {{"bytes", e.file_size()},
                                           {"xxh3", hash_of(e.path())}};
  json m = {{"format", kFormat},
            {"step", c.step},
            {"cursor", c.cursor},
            {"files", files}};
  if (c.val_loss && std::isfinite(*c.val_loss)) m["val_loss"] = *c.val_loss;
  return m.dump(2) + "\n";
}

void write_files(const fs::path& folder, const CheckpointContent& c) {
  write_safetensors(folder / "model.safetensors", c.model);
  if (!c.optimizer.empty())
    write_safetensors(folder / "optimizer.safetensors", c.optimizer);
  write_file_atomic(folder / "config.toml", c.config_toml);
  if (!c.tokenizer_json.empty())
    write_file_atomic(folder / "tokenizer.json", c.tokenizer_json);
  if (!c.hf_json.empty()) write_file_atomic(folder / "hf.json", c.hf_json);
  write_file_atomic(folder / kManifest, manifest_text(folder, c));
}

void remove_quietly(const fs::path& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

// Puts `from` in the place of `to`. Where both exist they are exchanged in one
// step, so that there is a whole folder at every moment.
void publish(const fs::path& from, const fs::path& to, const fs::path& parent) {
  bool replaced = fs::exists(to);
  int rc = replaced ? renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(),
                                RENAME_EXCHANGE)
                    : rename(from.c_str(), to.c_str());
  if (rc != 0)
    user_error("{}: cannot rename to it: {}", to.string(),
               std::strerror(errno));
  sync_folder(parent);
  if (replaced) remove_quietly(from);
}

void write_folder(const fs::path& folder,
                  FunctionRef<void(const fs::path&)> write) {
  fs::path parent = folder.has_parent_path() ? folder.parent_path() : ".";
  fs::path temp = parent / (std::string(kTemp) + folder.filename().string());
  remove_quietly(temp);
  make_folders(temp);
  try {
    write(temp);
    sync_folder(temp);
    publish(temp, folder, parent);
  } catch (...) {
    remove_quietly(temp);
    throw;
  }
}

template <class T>
T field(const json& m, const char* key, const fs::path& file) {
  bool good = m.contains(key) &&
              (std::is_same_v<T, double> ? m[key].is_number()
                                         : m[key].is_number_unsigned());
  if (!good) user_error("{}:0: no valid \"{}\"", file.string(), key);
  return m[key].get<T>();
}

// `Sizes` alone is quick, and enough for a folder that nothing depends on.
enum class Depth { Sizes, Hashes };

void check_file(const fs::path& folder, const std::string& name,
                const json& entry, Depth depth) {
  fs::path file = folder / name;
  if (name.find('/') != name.npos || !entry.is_object() ||
      !entry.contains("bytes") || !entry["bytes"].is_number_unsigned() ||
      !entry.contains("xxh3") || !entry["xxh3"].is_string())
    user_error("{}:0: bad entry for {}", (folder / kManifest).string(),
               json_quote(name));
  auto bytes = entry["bytes"].get<uint64_t>();
  MappedFile map(file);
  if (map.bytes().size() != bytes)
    user_error("{}:{}: has {} bytes, its manifest says {}", file.string(),
               std::min<uint64_t>(bytes, map.bytes().size()),
               map.bytes().size(), bytes);
  if (depth == Depth::Hashes &&
      hash_bytes(map.bytes()).hex() != entry["xxh3"].get<std::string>())
    user_error("{}:0: corrupt: its hash is not the manifest's", file.string());
}

Checkpoint check_step_folder(const fs::path& folder, Depth depth) {
  fs::path file = folder / kManifest;
  json m = parse_json(read_file(file), file.string());
  if (!m.is_object() || !m.contains("format") || m["format"] != kFormat)
    user_error("{}:0: not a {} manifest", file.string(), kFormat);
  Checkpoint c;
  c.folder = folder;
  c.step = field<int64_t>(m, "step", file);
  c.cursor = field<int64_t>(m, "cursor", file);
  if (m.contains("val_loss")) c.val_loss = field<double>(m, "val_loss", file);
  if (!m.contains("files") || !m["files"].is_object() ||
      !m["files"].contains("model.safetensors") ||
      !m["files"].contains("config.toml"))
    user_error("{}:0: lists no model.safetensors and config.toml",
               file.string());
  for (auto& [name, entry] : m["files"].items())
    check_file(folder, name, entry, depth);
  return c;
}

}  // namespace

fs::path write_new_folder(const fs::path& folder,
                          FunctionRef<void(const fs::path&)> write) {
  fs::path place = folder.lexically_normal();
  if (place.filename().empty()) place = place.parent_path();  // "out/"
  if (fs::exists(place) && !(fs::is_directory(place) && fs::is_empty(place)))
    user_error("{}: already exists; choose another place", place.string());
  if (place.has_parent_path()) make_folders(place.parent_path());
  write_folder(place, write);
  return place;
}

Checkpoint save_step_folder(const fs::path& folder,
                            const CheckpointContent& c) {
  auto write = [&](const fs::path& temp) { write_files(temp, c); };
  return {write_new_folder(folder, write), c.step, c.cursor, c.val_loss};
}

Checkpoint save_checkpoint(const fs::path& run, const CheckpointContent& c) {
  fs::path folder = run / step_name(c.step);
  write_folder(folder, [&](const fs::path& temp) { write_files(temp, c); });
  return {folder, c.step, c.cursor, c.val_loss};
}

Checkpoint open_step_folder(const fs::path& folder) {
  return check_step_folder(folder, Depth::Hashes);
}

std::vector<int64_t> checkpoint_steps(const fs::path& run) {
  std::vector<int64_t> steps;
  std::error_code e;
  for (fs::directory_iterator it(run, e), end; !e && it != end; it.increment(e))
    if (auto step = parse_step(it->path().filename().string());
        step && it->is_directory(e))
      steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<Checkpoint> newest_checkpoint(
    const fs::path& run,
    const std::function<void(const std::string&)>& skipped) {
  auto steps = checkpoint_steps(run);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) try {
      return open_step_folder(run / step_name(*step));
    } catch (const UserError& e) {
      if (skipped) skipped(e.what());
    }
  return std::nullopt;
}

Checkpoint open_checkpoint(
    const fs::path& path,
    const std::function<void(const std::string&)>& skipped) {
  if (!fs::is_directory(path))
    user_error("{}: no such checkpoint folder", path.string());
  if (fs::exists(path / kManifest)) return open_step_folder(path);
  std::string reasons;
  auto hear = [&](const std::string& why) {
    reasons += "\n  " + why;
    if (skipped) skipped(why);
  };
  if (auto c = newest_checkpoint(path, hear)) return *c;
  user_error("{}: holds no valid checkpoint (a folder step-N){}", path.string(),
             reasons);
}

void prune_checkpoints(const fs::path& run, int64_t keep) {
  if (keep <= 0) return;
  std::vector<Checkpoint> valid;  // newest first
  auto steps = checkpoint_steps(run);
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) try {
      // What allows a deletion is a newest one that is whole to the byte.
      valid.push_back(
          check_step_folder(run / step_name(*step),
                            valid.empty() ? Depth::Hashes : Depth::Sizes));
    } catch (const UserError&) {
      // Not whole: it takes no place among those kept, and stays for a look.
    }
  // Of equals the oldest: later ones may only repeat its evaluation.
  auto rank = [](const Checkpoint& c) {
    return std::pair(c.val_loss.value_or(INFINITY), c.step);
  };
  auto best =
      std::min_element(valid.begin(), valid.end(),
                       [&](auto& a, auto& b) { return rank(a) < rank(b); });
  for (size_t i = size_t(keep); i < valid.size(); ++i) {
    if (valid.begin() + ptrdiff_t(i) == best && best->val_loss) continue;
    // Renamed first: a folder named step-N is whole or not there.
    fs::path trash = run / (std::string(kTrash) + step_name(valid[i].step));
    remove_quietly(trash);
    std::error_code e;
    fs::rename(valid[i].folder, trash, e);
    if (!e) remove_quietly(trash);
  }
}

void clean_checkpoints(const fs::path& run) {
  std::vector<fs::path> left;
  for (auto& e : fs::directory_iterator(run)) {
    std::string name = e.path().filename().string();
    for (std::string_view prefix : {kTemp, kTrash})
      if (name.starts_with(prefix) && parse_step(name.substr(prefix.size())))
        left.push_back(e.path());
  }
  for (auto& path : left) remove_quietly(path);
}

}  // namespace moec
