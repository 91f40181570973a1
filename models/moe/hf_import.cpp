#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "models/moe/hf_checkpoint.h"
#include "models/moe/hf_config.h"
#include "models/moe/hf_names.h"
#include "models/moe/model_io.h"
#include "models/moe/transformer.h"
#include "runtime/checkpoint.h"
#include "support/error.h"
#include "support/file.h"
#include "support/json.h"

namespace moec::moe {
namespace {
namespace fs = std::filesystem;

// Beside tensors and config.json; some a tokenizer needs, some a server.
constexpr const char* kSideFiles[] = {"generation_config.json",
                                      "tokenizer.json",
                                      "tokenizer_config.json",
                                      "special_tokens_map.json",
                                      "added_tokens.json",
                                      "vocab.json",
                                      "merges.txt",
                                      "chat_template.jinja",
                                      "chat_template.json"};
constexpr uintmax_t kMaxSideFile = 1 << 28;

std::string read_side_file(const fs::path& file) {
  std::error_code none;
  if (auto bytes = fs::file_size(file, none); !none && bytes > kMaxSideFile)
    user_error("{}:0: has {} bytes, more than can be carried along",
               file.string(), bytes);
  std::string text = read_file(file);
  try {
    (void)nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    user_error("{}:0: is not UTF-8", file.string());
  }
  return text;
}

// What does not fit, by kind; each kind is listed up to a few dozen.
struct Problems {
  static constexpr size_t kShown = 24;
  struct Kind {
    const char* title;
    std::vector<std::string> names;
    size_t count = 0;
  };
  Kind missing{"missing", {}}, unexpected{"not the model's", {}},
      wrong{"wrong", {}};

  static void add(Kind& kind, std::string what) {
    if (kind.count++ < kShown) kind.names.push_back(std::move(what));
  }
  void report(const std::string& where) const {
    std::string text;
    for (auto* kind : {&missing, &unexpected, &wrong}) {
      if (kind->count == 0) continue;
      text +=
          fmt::format("\n  {}: {}", kind->title, fmt::join(kind->names, ", "));
      if (kind->count > kShown)
        text += fmt::format(" and {} more", kind->count - kShown);
    }
    if (!text.empty())
      user_error("{}: its tensors are not those of its config.json:{}", where,
                 text);
  }
};

bool is_weight(std::optional<DType> t) {
  return t == DType::F32 || t == DType::BF16 || t == DType::F16;
}

// Parameters, each put together from the tensors of a checkpoint.
struct Assembly {
  struct Part {
    int64_t begin = 0;
    std::span<const std::byte> bytes;
  };
  const Safetensors& file;
  const dsl::Parameters& params;
  std::vector<std::vector<Part>> parts;
  std::vector<std::optional<DType>> dtypes;
  std::vector<bool> used;
  Problems problems;

  Assembly(const Safetensors& f, const dsl::Parameters& p)
      : file(f),
        params(p),
        parts(size_t(p.size())),
        dtypes(size_t(p.size())),
        used(f.tensors().size()) {}

  const TensorEntry* take(const std::string& name) {
    auto* t = file.find(name);
    if (t) used[size_t(t - file.tensors().data())] = true;
    return t;
  }

  void add(const HfTensor& want) {
    auto* t = take(want.name);
    if (!t) return Problems::add(problems.missing, want.name);
    if (!is_weight(t->dtype) || t->dims != want.dims)
      return Problems::add(
          problems.wrong,
          fmt::format("{} is {}{} and must be {}{}", want.name, t->dtype_text,
                      dims_text(t->dims),
                      is_weight(t->dtype) ? "" : "F32, BF16 or F16 ",
                      dims_text(want.dims)));
    size_t at = 0, size = size_t(dtype_size(*t->dtype));
    for (auto& piece : want.pieces) {
      auto& dtype = dtypes[size_t(piece.parameter)];
      if (dtype && dtype != t->dtype)
        return Problems::add(problems.wrong,
                             fmt::format("{} is {}, and experts before it are "
                                         "not",
                                         want.name, t->dtype_text));
      dtype = t->dtype;
      size_t bytes = size_t(piece.count) * size;
      parts[size_t(piece.parameter)].push_back(
          {piece.begin, t->bytes.subspan(at, bytes)});
      at += bytes;
    }
  }

  // A tied head that was written out must be the embedding.
  bool tied_head() {
    auto* head = take("lm_head.weight");
    if (!head) return false;
    auto* embed = file.find("model.embed_tokens.weight");
    if (embed && (embed->dtype != head->dtype || embed->dims != head->dims ||
                  !std::ranges::equal(embed->bytes, head->bytes)))
      Problems::add(problems.wrong,
                    "lm_head.weight is not model.embed_tokens.weight, and "
                    "tie_word_embeddings is true");
    return true;
  }

  void finish(const std::string& where) {
    for (size_t i = 0; i < used.size(); ++i)
      if (!used[i]) Problems::add(problems.unexpected, file.tensors()[i].name);
    problems.report(where);
  }

  std::vector<TensorView> views() {
    std::vector<TensorView> out;
    for (size_t i = 0; i < parts.size(); ++i) {
      auto& list = parts[i];
      std::ranges::sort(list, {}, &Part::begin);
      auto& p = params[int(i)];
      TensorView v{
          p.name, *dtypes[i], {p.dims.begin(), p.dims.end()}, list[0].bytes};
      for (size_t k = 1; k < list.size(); ++k) v.rest.push_back(list[k].bytes);
      out.push_back(std::move(v));
    }
    return out;
  }

  std::optional<DType> dtype() const {
    for (auto& t : dtypes)
      if (t != dtypes[0]) return {};
    return dtypes[0];
  }
};

// Before anything is made in the sizes that config.json claims.
void require_plausible(const HfConfig& hf, const Safetensors& file,
                       bool stacked, const std::string& where) {
  auto& c = hf.config;
  i64 have = i64(file.tensors().size()), layers = c.num_moe_layers();
  i64 least = c.model.n_layers * 7 +
              (stacked ? 0 : layers * std::min(c.moe.experts, have + 1) * 3);
  if (least <= have) return;
  auto experts =
      std::ranges::find(hf.family->keys, "moe.experts", &HfKey::ours);
  user_error(
      "{}: holds {} tensors, and its config.json needs at least {}: "
      "num_hidden_layers = {}, {} = {} in {} layers",
      where, have, least, c.model.n_layers, experts->theirs, c.moe.experts,
      layers);
}

// The text of a tokenizer.json that moec can use; "" with a note for one that
// is sound but of another kind.
std::string usable_tokenizer(const std::string& text, const std::string& where,
                             i64 vocab, std::vector<std::string>& notes) {
  if (text.empty()) return {};
  parse_json(text, where);
  std::string why;
  try {
    i64 have = Tokenizer::from_json(text, where).vocab_size();
    if (have <= vocab) return text;
    why = fmt::format("{}: has {} tokens, and vocab_size = {}", where, have,
                      vocab);
  } catch (const UserError& e) {
    why = e.what();
  }
  notes.push_back("the tokenizer is carried along but not used (" + why +
                  "); prompts must be --prompt-ids, data token ids");
  return {};
}

}  // namespace

HfReport import_hf(const fs::path& from, const fs::path& to) {
  if (!fs::is_directory(from)) user_error("{}: no such folder", from.string());
  HfReport report;
  HfCarried carried;
  auto path = [&](const char* name) { return (from / name).string(); };
  std::string& config_json = carried.files["config.json"];
  config_json = read_side_file(from / "config.json");
  for (auto name : kSideFiles)
    if (fs::exists(from / name))
      carried.files[name] = read_side_file(from / name);
  HfConfig hf = read_hf_config(config_json, path("config.json"));
  if (auto& g = carried.file("generation_config.json"); !g.empty())
    read_hf_eos(g, path("generation_config.json"));
  else
    read_hf_eos(config_json, path("config.json"));

  Safetensors file(from);
  carried.stacked = std::ranges::any_of(file.tensors(), [](auto& t) {
    return t.name.ends_with(".mlp.experts.gate_up_proj");
  });
  require_plausible(hf, file, carried.stacked, from.string());
  Transformer model(hf.config);
  auto& params = model.parameters();
  Assembly assembly(file, params);
  for (auto& t : hf_tensors(*hf.family, carried.stacked, params))
    assembly.add(t);
  if (hf.config.model.tied) carried.tied_head = assembly.tied_head();
  assembly.finish(from.string());
  carried.dtype = assembly.dtype();

  CheckpointContent content;
  auto views = assembly.views();
  content.model = views;
  content.config_toml = checkpoint_config(hf.config);
  content.tokenizer_json =
      usable_tokenizer(carried.file("tokenizer.json"), path("tokenizer.json"),
                       hf.config.model.vocab, report.notes);
  content.hf_json = to_json(carried);
  save_step_folder(to, content);

  report.family = hf.family->model_type;
  report.tensors = i64(file.tensors().size());
  for (auto& t : file.tensors()) report.bytes += i64(t.bytes.size());
  for (auto& t : file.tensors())
    report.files = std::max(report.files, t.file + 1);
  return report;
}

}  // namespace moec::moe
