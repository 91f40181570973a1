#include "tokenizer/tokenizer.h"

#include <unordered_map>

#include "support/error.h"
#include "support/file.h"
#include "tokenizer/formats.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace moec {

struct Tokenizer::Impl {
  bpe::Vocabulary v;
  std::unordered_map<std::string_view, uint32_t> ids;
  // By id; added tokens stand in for the vocabulary's.
  std::vector<std::string_view> bytes;

  explicit Impl(bpe::Vocabulary vocabulary) : v(std::move(vocabulary)) {
    bytes.resize(size_t(v.size()));
    for (size_t i = 0; i < bytes.size() && i < v.tokens.size(); ++i)
      bytes[i] = v.tokens[i];
    for (const bpe::AddedToken& a : v.added) bytes[a.id] = a.text;
    for (size_t i = 0; i < bytes.size(); ++i)
      if (!bytes[i].empty()) ids.emplace(bytes[i], uint32_t(i));
  }

  std::string_view token(uint32_t id) const {
    if (id >= bytes.size() || bytes[id].empty())
      user_error("there is no token {}: ids go from 0 to {}", id,
                 int64_t(bytes.size()) - 1);
    return bytes[id];
  }

  // One id per code point or byte.
  void encode_units(std::string_view text, std::vector<uint32_t>& out) const {
    auto begin = reinterpret_cast<const uint8_t*>(text.data());
    auto end = begin + text.size();
    out.reserve(out.size() + text.size());
    for (auto p = begin; p < end;) {
      int length = 1;
      if (v.kind == bpe::Kind::Chars) bpe::decode_utf8(p, end, length);
      std::string_view unit(reinterpret_cast<const char*>(p), length);
      auto at = ids.find(unit);
      if (at == ids.end())
        user_error(
            "byte {} of the text: the character \"{}\" is not in the "
            "vocabulary of {} tokens",
            p - begin, unit, v.size());
      out.push_back(at->second);
      p += length;
    }
  }
};

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl)
    : impl_(std::move(impl)) {}

Tokenizer Tokenizer::from(bpe::Vocabulary v, const std::string& source) {
  bpe::check(v, source);
  if (!v.merges.empty()) user_error("{}: merges are not supported", source);
  return Tokenizer(std::make_shared<const Impl>(std::move(v)));
}

Tokenizer Tokenizer::load(const std::string& path, std::string_view pattern) {
  return from_json(read_file(path), path);
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
  write_file_atomic(path, to_json());
}

std::string Tokenizer::to_json() const { return bpe::write_hf_json(impl_->v); }

int64_t Tokenizer::vocab_size() const { return int64_t(impl_->bytes.size()); }

std::string_view Tokenizer::token_bytes(uint32_t id) const {
  return impl_->token(id);
}

int64_t Tokenizer::token_id(std::string_view bytes) const {
  auto at = impl_->ids.find(bytes);
  return at == impl_->ids.end() ? -1 : int64_t(at->second);
}

std::vector<uint32_t> Tokenizer::encode(std::string_view text,
                                        const EncodeOptions& options) const {
  std::vector<uint32_t> out;
  impl_->encode_units(text, out);
  return out;
}

std::vector<std::vector<uint32_t>> Tokenizer::encode_batch(
    std::span<const std::string_view> texts,
    const EncodeOptions& options) const {
  std::vector<std::vector<uint32_t>> out;
  for (std::string_view t : texts) out.push_back(encode(t, options));
  return out;
}

int64_t Tokenizer::count(std::string_view text,
                         const EncodeOptions& options) const {
  return int64_t(encode(text, options).size());
}

std::string Tokenizer::decode(std::span<const uint32_t> ids) const {
  size_t n = 0;
  for (uint32_t id : ids) n += impl_->token(id).size();
  std::string out;
  out.reserve(n);
  for (uint32_t id : ids) out += impl_->bytes[id];
  return out;
}

const bpe::Vocabulary& Tokenizer::vocabulary() const { return impl_->v; }

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
