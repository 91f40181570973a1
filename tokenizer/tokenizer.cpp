#include "tokenizer/tokenizer.h"

#include <algorithm>

#include "support/error.h"
#include "support/thread_pool.h"
#include "tokenizer/encoder.h"
#include "tokenizer/formats.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace moec {

struct Tokenizer::Impl {
  bpe::Model model;
  mutable bpe::EncoderPool pool;

  explicit Impl(bpe::Vocabulary v) : model(std::move(v)), pool(model) {}

  std::string_view token(uint32_t id) const {
    if (id >= model.bytes.size() || model.bytes[id].empty())
      user_error("there is no token {}: ids go from 0 to {}", id,
                 int64_t(model.bytes.size()) - 1);
    return model.bytes[id];
  }
};

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl)
    : impl_(std::move(impl)) {}

Tokenizer Tokenizer::from(bpe::Vocabulary v, const std::string& source) {
  bpe::check(v, source);
  return Tokenizer(std::make_shared<const Impl>(std::move(v)));
}

Tokenizer Tokenizer::load(const std::string& path, std::string_view pattern) {
  return from(bpe::load_vocabulary(path, pattern), path);
}

Tokenizer Tokenizer::from_json(std::string_view json,
                               const std::string& source) {
  return from(bpe::read_hf_json(json, source), source);
}

Tokenizer Tokenizer::chars(std::string_view text) {
  return from(bpe::char_vocabulary(text), "the text's characters");
}

Tokenizer Tokenizer::bytes() {
  return from(bpe::byte_vocabulary(), "the bytes");
}

void Tokenizer::save(const std::string& path) const {
  bpe::save_vocabulary(impl_->model.vocabulary, path);
}

std::string Tokenizer::to_json() const {
  return bpe::write_hf_json(impl_->model.vocabulary);
}

int64_t Tokenizer::vocab_size() const {
  return int64_t(impl_->model.bytes.size());
}

bool Tokenizer::has(uint32_t id) const {
  return id < impl_->model.bytes.size() && !impl_->model.bytes[id].empty();
}

std::string_view Tokenizer::token_bytes(uint32_t id) const {
  return impl_->token(id);
}

int64_t Tokenizer::token_id(std::string_view bytes) const {
  for (const bpe::AddedToken& a : impl_->model.vocabulary.added)
    if (a.text == bytes) return a.id;
  const auto& ids = impl_->model.ids;
  auto at = ids.find(bytes);
  return at == ids.end() ? -1 : int64_t(at->second);
}

void Tokenizer::encode_to(std::string_view text,
                          FunctionRef<void(std::span<const uint32_t>)> sink,
                          const EncodeOptions& options) const {
  bpe::encode_parallel(impl_->pool, text, options.specials, options.threads,
                       sink);
}

std::vector<uint32_t> Tokenizer::encode(std::string_view text,
                                        const EncodeOptions& options) const {
  std::vector<uint32_t> out;
  encode_to(
      text,
      [&](std::span<const uint32_t> ids) {
        out.insert(out.end(), ids.begin(), ids.end());
      },
      options);
  return out;
}

std::vector<std::vector<uint32_t>> Tokenizer::encode_batch(
    std::span<const std::string_view> texts,
    const EncodeOptions& options) const {
  std::vector<std::vector<uint32_t>> out(texts.size());
  ThreadPool pool(std::clamp(options.threads, 1, int(texts.size()) + 1));
  pool.run(int64_t(texts.size()), [&](int64_t i, int) {
    bpe::EncoderPool::Lease encoder(impl_->pool);
    encoder->encode(texts[size_t(i)], options.specials, out[size_t(i)]);
  });
  return out;
}

int64_t Tokenizer::count(std::string_view text,
                         const EncodeOptions& options) const {
  int64_t n = 0;
  encode_to(
      text, [&](std::span<const uint32_t> ids) { n += int64_t(ids.size()); },
      options);
  return n;
}

std::string Tokenizer::decode(std::span<const uint32_t> ids) const {
  size_t n = 0;
  for (uint32_t id : ids) n += impl_->token(id).size();
  std::string out;
  out.reserve(n);
  for (uint32_t id : ids) out += impl_->model.bytes[id];
  return out;
}

const bpe::Vocabulary& Tokenizer::vocabulary() const {
  return impl_->model.vocabulary;
}

StreamDecoder::StreamDecoder(Tokenizer tokenizer)
    : tokenizer_(std::move(tokenizer)) {}

std::string StreamDecoder::add(uint32_t id) {
  held_ += tokenizer_.token_bytes(id);
  size_t keep = bpe::utf8_pending(held_);
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StreamDecoder::finish() { return std::exchange(held_, {}); }

}  // namespace moec
