// Text to ids: added tokens, splitting, pieces through the cache. An Encoder
// belongs to one thread and gets faster with use; encode_parallel works on cuts
// of one text with one Encoder per thread.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "support/function_ref.h"
#include "tokenizer/model.h"
#include "tokenizer/piece_cache.h"

namespace moec::bpe {

class Encoder {
 public:
  explicit Encoder(const Model& model) : model_(model), cache_(model) {}

  // Appends the ids of a whole text.
  void encode(std::string_view text, bool specials, std::vector<uint32_t>& out);

  // The ids of the pieces that begin in [p, stop), with the rest of the text up
  // to `end` behind them; p is a piece's start and no added token is looked
  // for. Valid until the next call.
  std::span<const uint32_t> encode_range(const uint8_t* p, const uint8_t* stop,
                                         const uint8_t* end);

 private:
  std::span<const uint32_t> encode_units(const uint8_t* begin,
                                         const uint8_t* end);
  void encode_plain(std::string_view text, std::vector<uint32_t>& out);

  static constexpr size_t kBatch = 256;
  const Model& model_;
  PieceCache cache_;
  std::vector<uint32_t> staged_;
  uint32_t ends_[kBatch + Splitter::kSlack];
};

// Encoders in store for whoever calls.
class EncoderPool {
 public:
  explicit EncoderPool(const Model& model) : model_(model) {}

  class Lease {
   public:
    explicit Lease(EncoderPool& pool);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Encoder* operator->() { return encoder_.get(); }

   private:
    EncoderPool& pool_;
    std::unique_ptr<Encoder> encoder_;
  };
  const Model& model() const { return model_; }

 private:
  const Model& model_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Encoder>> idle_;
};

// Calls `sink` with the ids of the text in order, a part at a time, from one
// thread at a time. The ids do not depend on `threads`.
void encode_parallel(EncoderPool& pool, std::string_view text, bool specials,
                     int threads,
                     FunctionRef<void(std::span<const uint32_t>)> sink);

}  // namespace moec::bpe
