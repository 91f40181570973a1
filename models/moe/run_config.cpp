#include "models/moe/run_config.h"

#include <fmt/ranges.h>

#include "models/moe/config_fields.h"
#include "models/moe/data_files.h"
#include "models/moe/model_io.h"
#include "support/error.h"
#include "support/file.h"

namespace moec::moe {
namespace {

// Keys that may change when a run continues: how long, how often, how fast.
bool may_change(const Field& f) {
  if (f.section == "compile" || f.section == "mesh") return true;
  if (f.section == "data") return f.key == "path";
  if (f.section != "train") return false;
  for (auto key : {"steps", "eval_every", "eval_batches", "save_every", "keep"})
    if (f.key == key) return true;
  return false;
}

bool same_value(const Field& a, const Field& b) {
  return std::visit(
      [&](auto* x) { return *x == *std::get<decltype(x)>(b.target); },
      a.target);
}

void require_same_run(Config now, Config before, const std::string& place) {
  auto a = fields(now), b = fields(before);
  std::vector<std::string> differ;
  for (size_t i = 0; i < a.size(); ++i)
    if (!may_change(a[i]) && !same_value(a[i], b[i]))
      differ.push_back(fmt::format("{}.{}", a[i].section, a[i].key));
  if (!differ.empty())
    usage_error(
        "{} was made with another {}; resume with the same config, or "
        "start a new run with --init",
        place, fmt::join(differ, ", "));
}

// A model knows its ids by its own tokenizer; one made from the new text would
// number other things.
void require_tokenizer(const Config& c, const std::optional<Tokenizer>& has,
                       const std::optional<Checkpoint>& from) {
  auto& t = c.data.tokenizer;
  bool made = t == "char" || t == "bytes" || t.starts_with("bpe:");
  if (has || !from || !made || c.data.path.empty()) return;
  if (find_data(c.data.path)[0].is_tokens()) return;
  user_error(
      "{}: has no tokenizer, so the data must be files of token ids (*.bin, "
      "*.npy), or data.tokenizer a tokenizer file",
      from->folder.string());
}

}  // namespace

RunStart start_run(const TrainOptions& o, const std::filesystem::path& folder) {
  std::optional<Tokenizer> tokenizer;
  RunStart s{o.config, {}, {}, {}};
  if (o.resume)
    s.checkpoint = newest_checkpoint(folder, [](const std::string& why) {
      fmt::print(stderr, "passed over: {}\n", why);
    });
  std::optional<OpenedModel> from;
  if (s.checkpoint)
    from = open_model(s.checkpoint->folder);
  else if (o.init)
    from = open_model(*o.init);
  if (from) {
    tokenizer = from->tokenizer;
    s.hf = from->hf;
    require_tokenizer(s.config, tokenizer, from->checkpoint);
  }
  s.corpus = load_corpus(s.config, tokenizer);
  if (s.checkpoint)
    require_same_run(s.config, from->config, s.checkpoint->folder.string());
  write_file_atomic(folder / "config.toml", to_toml(s.config));
  return s;
}

}  // namespace moec::moe
