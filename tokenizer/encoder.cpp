#include "tokenizer/encoder.h"

#include <algorithm>

#include "support/error.h"
#include "tokenizer/nfc.h"

namespace moec::bpe {
namespace {

// A range worked on at once: its ids fit into the second-level cache.
constexpr size_t kRange = size_t(1) << 17;

const uint8_t* data(std::string_view s) {
  return reinterpret_cast<const uint8_t*>(s.data());
}

}  // namespace

std::span<const uint32_t> Encoder::encode_range(const uint8_t* p,
                                                const uint8_t* stop,
                                                const uint8_t* end) {
  if (model_.splitter.scan() == Scan::Units) return encode_units(p, stop);
  Key keys[kBatch];
  uint64_t hashes[kBatch];
  cache_.begin();
  const uint8_t* begin = p;
  uint32_t* out = staged_.data();
  while (p < stop) {
    size_t n = model_.splitter.split(p, stop, end, ends_, kBatch);
    if (n == 0) break;
    // Before room for its ids is asked for.
    if (size_t last = ends_[n - 1] - (n > 1 ? ends_[n - 2] : 0);
        last > kLongestPiece)
      user_error(
          "a piece of {} bytes without a place to split is over the limit of "
          "{}",
          last, kLongestPiece);
    // No piece has more ids than bytes; emit() writes 4 at once.
    size_t need = size_t(p - begin) + ends_[n - 1] + 4;
    if (staged_.size() < need) {
      out = cache_.settle(out);
      size_t used = size_t(out - staged_.data());
      staged_.resize(std::max(need, need * 3 / 2));
      out = staged_.data() + used;
    }
    // Pieces whose 16 bytes may be read.
    size_t safe = n;
    while (safe > 0 && end - p - (safe > 1 ? ends_[safe - 2] : 0) < 16) --safe;
    uint32_t at = 0;
    for (size_t i = 0; i < safe; ++i) {
      size_t length = ends_[i] - at;
      if (length <= kShortPiece) [[likely]] {
        keys[i] = make_key(p + at, length);
        hashes[i] = hash_key(keys[i]);
        cache_.prefetch(hashes[i]);
      } else {
        hashes[i] = cache_.prefetch_long(p + at, length);
      }
      at = ends_[i];
    }
    at = 0;
    for (size_t i = 0; i < n; ++i) {
      size_t length = ends_[i] - at;
      if (i >= safe) [[unlikely]]
        out = cache_.emit_end(p + at, length, out);
      else if (length <= kShortPiece) [[likely]]
        out = cache_.emit(keys[i], hashes[i], out);
      else
        out = cache_.emit_long(p + at, length, hashes[i], out);
      at = ends_[i];
    }
    p += ends_[n - 1];
  }
  return {staged_.data(), cache_.settle(out)};
}

std::span<const uint32_t> Encoder::encode_units(const uint8_t* begin,
                                                const uint8_t* end) {
  if (staged_.size() < size_t(end - begin)) staged_.resize(end - begin);
  uint32_t* out = staged_.data();
  bool chars = model_.vocabulary.kind == Kind::Chars;
  const auto& ids = model_.char_ids;
  for (const uint8_t* p = begin; p < end;) {
    int length = 1;
    int32_t c = chars ? decode_utf8(p, end, length) : *p;
    uint32_t id = !chars ? model_.byte_ids[size_t(c)]
                  : c >= 0 && size_t(c) < ids.size() ? ids[size_t(c)]
                                                     : kNone;
    if (id == kNone)
      user_error(
          "the text's {} is not in the vocabulary of {}",
          chars && c >= 0
              ? fmt::format("character \"{}\" (U+{:04X})",
                            std::string_view(reinterpret_cast<const char*>(p),
                                             size_t(length)),
                            c)
              : fmt::format("byte 0x{:02x}", *p),
          model_.bytes.size());
    *out++ = id;
    p += length;
  }
  return {staged_.data(), size_t(out - staged_.data())};
}

void Encoder::encode_plain(std::string_view text, std::vector<uint32_t>& out) {
  const uint8_t *p = data(text), *end = p + text.size();
  while (p < end) {
    const uint8_t* stop = size_t(end - p) <= kRange * 2
                              ? end
                              : model_.splitter.safe_cut(p, p + kRange, end);
    auto ids = encode_range(p, stop, end);
    out.insert(out.end(), ids.begin(), ids.end());
    p = stop;
  }
}

void Encoder::encode(std::string_view text, bool specials,
                     std::vector<uint32_t>& out) {
  std::string normal;
  if (model_.vocabulary.nfc) text = to_nfc(text, normal);
  const AddedTokens& added = specials ? model_.all_added : model_.plain_added;
  if (added.empty()) return encode_plain(text, out);
  for (size_t at = 0; at < text.size();) {
    auto match = added.find(text, at);
    encode_plain(text.substr(at, match.begin - at), out);
    if (match.id != kNone) out.push_back(match.id);
    at = match.end;
  }
}

EncoderPool::Lease::Lease(EncoderPool& pool) : pool_(pool) {
  std::lock_guard lock(pool.mutex_);
  if (pool.idle_.empty()) {
    encoder_ = std::make_unique<Encoder>(pool.model_);
  } else {
    encoder_ = std::move(pool.idle_.back());
    pool.idle_.pop_back();
  }
}

EncoderPool::Lease::~Lease() {
  std::lock_guard lock(pool_.mutex_);
  pool_.idle_.push_back(std::move(encoder_));
}

}  // namespace moec::bpe
