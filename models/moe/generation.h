// Text from a model: prompts in, tokens out, one by one.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "models/moe/engine.h"
#include "models/moe/sampling.h"
#include "models/moe/transformer.h"

namespace moec::moe {

struct GenerateOptions {
  SamplingOptions sampling;
  i64 max_tokens = 100;
  std::vector<int32_t> stop;  // a row ends before one of these
  std::vector<int32_t> eos;   // a row ends with one of these
  // Only ids below this, where the vocabulary is larger than the tokenizer's;
  // 0: all.
  i64 ids = 0;
};

// Called with each new token; returning false ends that row.
using TokenSink = std::function<bool(i64 row, int32_t token)>;

// Keeps keys and values of the text so far, in caches whose lengths are powers
// of two, so that few functions are compiled. The model sees at most train.seq
// tokens: a row whose text is longer is cut to begin at a multiple of
// train.seq / 2, and read again.
class Generator {
 public:
  // All must outlive this; `state` holds the parameters, as the model stores
  // them. Functions are compiled when first needed and kept.
  Generator(Engine& engine, const Transformer& model, State& state);

  // Continues every prompt (at least one token each) and returns the new
  // tokens of each row. Rows do not influence each other.
  std::vector<std::vector<int32_t>> generate(
      const std::vector<std::vector<int32_t>>& prompts,
      const GenerateOptions& options, const TokenSink& sink = {});

  // Logits [rows, vocab] after the last token of each text; the texts of
  // earlier calls, if they only grew by one token each, are not read again.
  std::span<const float> next(const std::vector<std::vector<int32_t>>& texts);

  // Records every launch from now on, until set to null.
  void set_trace(Trace* trace);

 private:
  using Texts = std::vector<std::vector<int32_t>>;
  // First token that the model sees of a text.
  i64 first_seen(i64 length) const;
  i64 longest_seen(const Texts& texts) const;
  void fill(const Texts& texts, i64 seq, std::span<int32_t> tokens,
            std::span<int32_t> last) const;
  std::span<const float> prefill(const Texts& texts);
  std::span<const float> decode(const Texts& texts);
  std::span<const float> reread(const Texts& texts);
  void grow();
  State& caches(i64 length);
  Function& function(const std::string& name, i64 rows, i64 seq, i64 length);

  Engine& engine_;
  const Transformer& model_;
  State& state_;
  std::map<std::tuple<std::string, i64, i64, i64>, Function> functions_;
  std::map<std::pair<i64, i64>, State> caches_;  // by rows and length
  // What the caches hold: each text from its start to its size; their length.
  std::vector<i64> starts_, sizes_;
  i64 length_ = 0;
  Trace* trace_ = nullptr;
};

}  // namespace moec::moe
