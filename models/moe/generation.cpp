#include "models/moe/generation.h"

#include <algorithm>

#include "models/moe/functions.h"
#include "support/error.h"

namespace moec::moe {

Generator::Generator(Engine& engine, const Transformer& model, State& state)
    : engine_(engine), model_(model), state_(state) {}

Function& Generator::next_function(i64 rows, i64 length) {
  auto key = std::make_pair(rows, length);
  auto it = functions_.find(key);
  if (it == functions_.end()) {
    auto f = engine_.compile(next_token_function(model_, rows, length));
    f.bind(state_);
    it = functions_.emplace(key, std::move(f)).first;
  }
  return it->second;
}

std::vector<std::vector<int32_t>> Generator::generate(
    const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& o,
    const TokenSink& sink) {
  check(o.sampling);
  i64 rows = i64(prompts.size()), limit = model_.config().train.seq;
  i64 vocab = model_.config().model.vocab;
  auto text = prompts;
  for (auto& row : text) {
    if (row.empty()) user_error("a prompt has no tokens");
    for (int32_t id : row)
      if (id < 0 || id >= vocab)
        user_error("token id {} of a prompt is outside the vocabulary of {}",
                   id, vocab);
  }
  std::vector<std::vector<int32_t>> out(prompts.size());
  std::vector<bool> done(prompts.size());
  for (i64 step = 0; step < o.max_tokens; ++step) {
    size_t longest = 1;
    for (auto& row : text) longest = std::max(longest, row.size());
    // Few lengths, so that few functions are compiled.
    i64 length = std::min<i64>(32, limit);
    while (length < i64(longest) && length < limit)
      length = std::min(2 * length, limit);
    Function& f = next_function(rows, length);
    auto tokens = f.input<int32_t>("tokens");
    auto last = f.input<int32_t>("last");
    std::ranges::fill(tokens, 0);
    for (i64 r = 0; r < rows; ++r) {
      auto& row = text[size_t(r)];
      i64 n = std::min(i64(row.size()), length);
      std::copy(row.end() - n, row.end(), tokens.begin() + r * length);
      last[size_t(r)] = int32_t(r * length + n - 1);
    }
    f.run();
    auto logits = f.output<float>("logits");
    bool any = false;
    for (size_t r = 0; r < text.size(); ++r) {
      if (done[r]) continue;
      int32_t id = sample(logits.subspan(r * size_t(vocab), size_t(vocab)),
                          text[r], o.sampling, i64(r), step);
      if (std::ranges::find(o.stop, id) != o.stop.end()) {
        done[r] = true;
        continue;
      }
      text[r].push_back(id);
      out[r].push_back(id);
      if (sink && !sink(i64(r), id)) done[r] = true;
      any = any || !done[r];
    }
    if (!any) break;
  }
  return out;
}

}  // namespace moec::moe
