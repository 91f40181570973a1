#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/moe/hf_checkpoint.h"
#include "models/moe/hf_config.h"
#include "models/moe/hf_names.h"
#include "models/moe/model_io.h"
#include "models/moe/transformer.h"
#include "support/error.h"
#include "support/file.h"

namespace moec::moe {
namespace {
namespace fs = std::filesystem;

// The parameters of a checkpoint, in the order of the model's.
std::vector<const TensorEntry*> parameter_entries(
    const Safetensors& file, const dsl::Parameters& params) {
  std::vector<const TensorEntry*> out;
  for (auto& p : params.all()) {
    auto* t = file.find(p.name);
    DType dtype = t && t->dtype ? *t->dtype : DType::F32;
    if (dtype != DType::BF16 && dtype != DType::F16) dtype = DType::F32;
    file.require(p.name, dtype, std::vector<i64>(p.dims.begin(), p.dims.end()));
    out.push_back(t);
  }
  for (auto& t : file.tensors())
    if (params.find(t.name) < 0)
      user_error("{}: tensor {} is not the model's", file.place(t), t.name);
  return out;
}

TensorView view_of(const HfTensor& t, const dsl::Parameters& params,
                   const std::vector<const TensorEntry*>& entries) {
  TensorView v{t.name, DType::F32, t.dims, {}};
  for (auto& piece : t.pieces) {
    auto* e = entries[size_t(piece.parameter)];
    if (v.bytes.empty()) v.dtype = *e->dtype;
    if (*e->dtype != v.dtype)
      user_error("{}: parameters of {} and {} cannot be one tensor {}",
                 params[piece.parameter].name, e->dtype_text,
                 dtype_name(v.dtype), t.name);
    auto size = size_t(dtype_size(v.dtype));
    auto bytes = e->bytes.subspan(size_t(piece.begin) * size,
                                  size_t(piece.count) * size);
    if (v.bytes.empty())
      v.bytes = bytes;
    else
      v.rest.push_back(bytes);
  }
  return v;
}

int64_t bytes_of(const TensorView& v) {
  auto n = int64_t(v.bytes.size());
  for (auto piece : v.rest) n += int64_t(piece.size());
  return n;
}

// One file, or shards of at most `limit` bytes (or one tensor) and an index.
int write_tensors(const fs::path& folder, std::span<const TensorView> views,
                  int64_t limit) {
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  std::vector<size_t> ends;  // of shards
  int64_t total = 0, in_shard = 0;
  for (size_t i = 0; i < views.size(); ++i) {
    int64_t bytes = bytes_of(views[i]);
    if (in_shard > 0 && in_shard + bytes > limit) {
      ends.push_back(i);
      in_shard = 0;
    }
    in_shard += bytes;
    total += bytes;
  }
  ends.push_back(views.size());
  if (ends.size() == 1) {
    write_safetensors(folder / "model.safetensors", views, metadata);
    return 1;
  }
  nlohmann::json map;
  size_t begin = 0;
  for (size_t s = 0; s < ends.size(); ++s) {
    auto name =
        fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, ends.size());
    auto shard = views.subspan(begin, ends[s] - begin);
    write_safetensors(folder / name, shard, metadata);
    for (auto& v : shard) map[v.name] = name;
    begin = ends[s];
  }
  nlohmann::json index = {{"metadata", {{"total_size", total}}},
                          {"weight_map", map}};
  write_file_atomic(folder / "model.safetensors.index.json",
                    index.dump(2) + "\n");
  return int(ends.size());
}

}  // namespace

HfReport export_hf(const fs::path& checkpoint, const fs::path& to,
                   const HfExportOptions& options) {
  OpenedModel opened = open_model(checkpoint);
  if (!opened.checkpoint)
    user_error("{}: is a config; a checkpoint is what can be exported",
               checkpoint.string());
  auto& c = opened.config;
  auto& family = hf_family_of(c);
  HfCarried carried;
  // A config.json of another family has nothing to say about this model.
  if (opened.hf && &hf_family_of(*opened.hf) == &family) carried = *opened.hf;

  Transformer model(c);
  auto& params = model.parameters();
  Safetensors file(opened.checkpoint->model());
  auto entries = parameter_entries(file, params);
  std::vector<TensorView> views;
  for (auto& t : hf_tensors(family, carried.stacked, params))
    views.push_back(view_of(t, params, entries));
  if (c.model.tied && carried.tied_head) {
    TensorView head = *std::ranges::find(views, "model.embed_tokens.weight",
                                         &TensorView::name);
    head.name = "lm_head.weight";
    views.push_back(std::move(head));
  }
  std::optional<DType> dtype = views[0].dtype;
  for (auto& v : views)
    if (v.dtype != dtype) dtype.reset();
  if (carried.dtype == dtype && !carried.files.empty()) dtype.reset();

  HfReport report;
  report.family = family.model_type;
  report.tensors = i64(views.size());
  for (auto& v : views) report.bytes += bytes_of(v);
  auto config = write_hf_config(family, c, carried.file("config.json"),
                                dtype ? &*dtype : nullptr);
  write_new_folder(to, [&](const fs::path& temp) {
    report.files = write_tensors(temp, views, options.shard_bytes);
    for (auto& [name, text] : carried.files)
      if (name != "config.json") write_file_atomic(temp / name, text);
    if (!carried.files.contains("tokenizer.json") &&
        opened.checkpoint->has_tokenizer())
      write_file_atomic(temp / "tokenizer.json",
                        read_file(opened.checkpoint->tokenizer()));
    write_file_atomic(temp / "config.json", config);
  });
  return report;
}

}  // namespace moec::moe
