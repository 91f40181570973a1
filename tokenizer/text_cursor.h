// Hands out one text, or several, in ranges that begin and end at safe cuts.
// Not thread-safe. Every byte is looked at once, however far the cuts are
// apart.
#pragma once
#include <span>
#include <string_view>

#include "tokenizer/model.h"

namespace moec::bpe {

struct TextRange {
  size_t index;   // 0, 1, 2, ... in order
  uint64_t base;  // offset of `begin` in all the texts
  // Pieces begin in [begin, stop) and see the text up to `end`.
  const uint8_t *begin, *stop, *end;
  uint32_t added;  // the added token that follows, or kNone
};

class TextCursor {
 public:
  // All arguments must outlive the cursor.
  TextCursor(std::span<const std::string_view> texts, const Splitter& splitter,
             const AddedTokens& added, size_t range)
      : texts_(texts), splitter_(splitter), added_(added), range_(range) {
    skip_empty();
  }

  bool next(TextRange& r) {
    if (text_ == texts_.size()) return false;
    std::string_view text = texts_[text_];
    auto begin = reinterpret_cast<const uint8_t*>(text.data());
    const uint8_t *p = begin + at_, *end = begin + match_.begin;
    const uint8_t* stop = size_t(end - p) <= range_ * 2
                              ? end
                              : splitter_.safe_cut(p, p + range_, end);
    r = {index_++, base_ + at_, p, stop, end, stop == end ? match_.id : kNone};
    at_ = stop == end ? match_.end : size_t(stop - begin);
    if (stop != end) return true;
    if (at_ < text.size()) {
      match_ = added_.find(text, at_);
    } else {
      base_ += text.size();
      ++text_;
      skip_empty();
    }
    return true;
  }

 private:
  void skip_empty() {
    while (text_ < texts_.size() && texts_[text_].empty()) ++text_;
    at_ = 0;
    if (text_ < texts_.size()) match_ = added_.find(texts_[text_], 0);
  }

  std::span<const std::string_view> texts_;
  const Splitter& splitter_;
  const AddedTokens& added_;
  size_t range_, text_ = 0, at_ = 0, index_ = 0;
  uint64_t base_ = 0;
  AddedTokens::Match match_{0, 0, kNone};
};

}  // namespace moec::bpe
