#include "models/moe/generation.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "models/moe/functions.h"
#include "support/error.h"

namespace moec::moe {
namespace {

i64 bucket(i64 n) { return std::max<i64>(16, i64(std::bit_ceil(uint64_t(n)))); }

}  // namespace

Generator::Generator(Engine& engine, const Transformer& model, State& state)
    : engine_(engine), model_(model), state_(state) {}

i64 Generator::first_seen(i64 length) const {
  i64 seq = model_.config().train.seq;
  i64 step = std::max<i64>(seq / 2, 1);
  return length <= seq ? 0 : (length - seq + step - 1) / step * step;
}

State& Generator::caches(i64 length) {
  auto rows = i64(starts_.size());
  auto [it, fresh] = caches_.try_emplace({rows, length});
  if (!fresh) return it->second;
  auto& m = model_.config().model;
  for (i64 l = 0; l < m.n_layers; ++l)
    for (bool key : {true, false}) {
      i64 width = key ? m.d_head : m.d_value;
      it->second.add({fmt::format("cache.{}.{}", key ? 'k' : 'v', l),
                      DType::F32,
                      {rows, length, m.n_kv_heads, width},
                      rows * length * m.n_kv_heads * width * 4});
    }
  return it->second;
}

Function& Generator::function(const std::string& name, i64 rows, i64 seq,
                              i64 length) {
  auto key = std::make_tuple(name, rows, seq, length);
  auto it = functions_.find(key);
  if (it != functions_.end()) return it->second;
  auto graph = name == "prefill"  ? prefill_function(model_, rows, seq, length)
               : name == "decode" ? decode_function(model_, rows, length)
                                  : next_token_function(model_, rows, seq);
  auto f = engine_.compile(std::move(graph));
  f.bind(state_);
  if (length > 0) f.bind(caches(length));
  f.set_trace(trace_);
  return functions_.emplace(key, std::move(f)).first->second;
}

i64 Generator::longest_seen(const Texts& texts) const {
  i64 longest = 1;
  for (auto& t : texts)
    longest = std::max(longest, i64(t.size()) - first_seen(i64(t.size())));
  return longest;
}

// Puts the tokens that the model sees in front of their rows, and where each
// row ends in `last`.
void Generator::fill(const Texts& texts, i64 seq, std::span<int32_t> tokens,
                     std::span<int32_t> last) const {
  std::ranges::fill(tokens, 0);
  for (size_t r = 0; r < texts.size(); ++r) {
    auto begin = texts[r].begin() + first_seen(i64(texts[r].size()));
    auto end = std::copy(begin, texts[r].end(), tokens.begin() + i64(r) * seq);
    last[r] = int32_t(end - tokens.begin() - 1);
  }
}

std::span<const float> Generator::prefill(const Texts& texts) {
  starts_.clear(), sizes_.clear();
  for (auto& t : texts) {
    sizes_.push_back(i64(t.size()));
    starts_.push_back(first_seen(sizes_.back()));
  }
  i64 longest = longest_seen(texts);
  i64 seq = std::min(bucket(longest), model_.config().train.seq);
  length_ = bucket(longest + 1);
  Function& f = function("prefill", i64(texts.size()), seq, length_);
  fill(texts, seq, f.input<int32_t>("tokens"), f.input<int32_t>("last"));
  f.run();
  return f.output<float>("logits");
}

// Moves the caches to ones of twice the length.
void Generator::grow() {
  State& from = caches(length_);
  State& to = caches(2 * length_);
  for (size_t i = 0; i < from.all().size(); ++i) {
    auto& a = from.all()[i];
    auto& b = to.all()[i];
    i64 rows = a.spec.dims[0], bytes = a.spec.bytes / rows;
    for (i64 r = 0; r < rows; ++r)
      std::memcpy(b.data.data() + r * 2 * bytes, a.data.data() + r * bytes,
                  size_t(bytes));
  }
  length_ *= 2;
}

std::span<const float> Generator::decode(const Texts& texts) {
  for (size_t r = 0; r < texts.size(); ++r)
    if (sizes_[r] - starts_[r] == length_) {
      grow();
      break;
    }
  Function& f = function("decode", i64(texts.size()), 1, length_);
  auto tokens = f.input<int32_t>("tokens");
  auto start = f.input<int32_t>("start");
  for (size_t r = 0; r < texts.size(); ++r) {
    tokens[r] = texts[r].back();
    start[r] = int32_t(sizes_[r]++ - starts_[r]);
  }
  f.run();
  return f.output<float>("logits");
}

// Without caches, as tokens that are not there any more took experts' slots
// where capacity applies.
std::span<const float> Generator::reread(const Texts& texts) {
  i64 seq = std::min(bucket(longest_seen(texts)), model_.config().train.seq);
  Function& f = function("next_token", i64(texts.size()), seq, 0);
  fill(texts, seq, f.input<int32_t>("tokens"), f.input<int32_t>("last"));
  f.run();
  return f.output<float>("logits");
}

std::span<const float> Generator::next(const Texts& texts) {
  auto& moe = model_.config().moe;
  if (moe.eval_capacity && moe.capacity > 0) return reread(texts);
  bool grown = texts.size() == sizes_.size();
  for (size_t r = 0; grown && r < texts.size(); ++r)
    grown = i64(texts[r].size()) == sizes_[r] + 1 &&
            first_seen(i64(texts[r].size())) == starts_[r];
  return grown ? decode(texts) : prefill(texts);
}

void Generator::set_trace(Trace* trace) {
  trace_ = trace;
  for (auto& [key, f] : functions_) f.set_trace(trace);
}

std::vector<std::vector<int32_t>> Generator::generate(const Texts& prompts,
                                                      const GenerateOptions& o,
                                                      const TokenSink& sink) {
  check(o.sampling);
  auto vocab = size_t(model_.config().model.vocab);
  for (auto& row : prompts) {
    if (row.empty()) user_error("a prompt has no tokens");
    for (int32_t id : row)
      if (id < 0 || size_t(id) >= vocab)
        user_error("token id {} of a prompt is outside the vocabulary of {}",
                   id, vocab);
  }
  Texts texts = prompts, out(prompts.size());
  std::vector<bool> done(prompts.size());
  size_t ids = o.ids > 0 ? std::min(size_t(o.ids), vocab) : vocab;
  sizes_.clear();  // other texts than those of earlier calls
  for (i64 step = 0; step < o.max_tokens; ++step) {
    auto logits = next(texts);
    bool any = false;
    for (size_t r = 0; r < texts.size(); ++r) {
      // A row that ended goes on unseen, so that all grow alike.
      if (done[r]) {
        texts[r].push_back(0);
        continue;
      }
      int32_t id = sample(logits.subspan(r * vocab, ids), texts[r], o.sampling,
                          i64(r), step);
      texts[r].push_back(id);
      if (std::ranges::find(o.stop, id) != o.stop.end()) {
        done[r] = true;
        continue;
      }
      out[r].push_back(id);
      if (sink && !sink(i64(r), id)) done[r] = true;
      if (std::ranges::find(o.eos, id) != o.eos.end()) done[r] = true;
      any = any || !done[r];
    }
    if (!any) break;
  }
  return out;
}

}  // namespace moec::moe
