#include "runtime/npy.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "support/error.h"

namespace moec {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

// The header's text is a Python dict of a string, a bool and a tuple:
// {'descr': '<u2', 'fortran_order': False, 'shape': (10,), }
class HeaderReader {
 public:
  HeaderReader(std::string_view text, int64_t base, const std::string& name)
      : text_(text), base_(base), name_(name) {}

  void read() {
    expect('{');
    while (!accept('}')) {
      std::string_view key = quoted();
      expect(':');
      if (key == "descr" && descr_.empty())
        descr_ = quoted();
      else if (key == "fortran_order" && !has_order_)
        fortran_ = boolean(), has_order_ = true;
      else if (key == "shape" && !has_shape_)
        shape(), has_shape_ = true;
      else
        fail("not a header that numpy writes");
      if (!accept(',') && peek() != '}') fail("expected ',' or '}'");
    }
    skip_space();
    if (at_ != text_.size()) fail("text after the header's dict");
    if (descr_.empty() || !has_order_ || !has_shape_)
      fail("the header lacks descr, fortran_order or shape");
  }

  NpyArray array() const {
    NpyArray a;
    a.is_signed = descr_.size() == 3 && descr_[1] == 'i';
    bool integer = descr_.size() == 3 && (a.is_signed || descr_[1] == 'u');
    a.bytes = integer ? descr_[2] - '0' : 0;
    if (a.bytes != 1 && a.bytes != 2 && a.bytes != 4 && a.bytes != 8)
      user_error(
          "{}:{}: holds {}; token ids are integers, such as <u2, <u4 or <i8",
          name_, base_, descr_);
    if (descr_[0] != '<' && descr_[0] != '|')
      user_error("{}:{}: holds {}, and only little-endian integers are read",
                 name_, base_, descr_);
    if (fortran_ && axes_ > 1)
      user_error("{}:{}: is in Fortran order; save it in C order", name_,
                 base_);
    a.count = count_;
    return a;
  }

 private:
  [[noreturn]] void fail(std::string_view why) const {
    user_error("{}:{}: {}", name_, base_ + int64_t(at_), why);
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n'))
      ++at_;
  }
  char peek() {
    skip_space();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    bool here = peek() == c && at_ < text_.size();
    at_ += here;
    return here;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("expected '{}'", c));
  }
  std::string_view quoted() {
    char q = peek();
    if (q != '\'' && q != '"') fail("expected a string");
    size_t end = text_.find(q, at_ + 1);
    if (end == text_.npos) fail("a string without an end");
    auto s = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return s;
  }
  bool boolean() {
    skip_space();
    for (auto word : {std::string_view("True"), std::string_view("False")})
      if (text_.substr(at_).starts_with(word)) {
        at_ += word.size();
        return word == "True";
      }
    fail("expected True or False");
  }
  void shape() {
    expect('(');
    while (!accept(')')) {
      int64_t size = 0;
      skip_space();
      const char* begin = text_.data() + at_;
      auto [end, error] =
          std::from_chars(begin, text_.data() + text_.size(), size);
      if (error != std::errc() || size < 0) fail("expected a size");
      at_ += size_t(end - begin);
      if (__builtin_mul_overflow(count_, size, &count_))
        fail("the array is larger than any file");
      ++axes_;
      if (!accept(',') && peek() != ')') fail("expected ',' or ')'");
    }
  }

  std::string_view text_;
  size_t at_ = 0;
  int64_t base_;
  const std::string& name_;
  std::string_view descr_;
  bool fortran_ = false, has_order_ = false, has_shape_ = false;
  int64_t count_ = 1;
  int axes_ = 0;
};

}  // namespace

NpyArray read_npy(std::span<const std::byte> file, const std::string& name) {
  std::string_view text(reinterpret_cast<const char*>(file.data()),
                        file.size());
  if (!text.starts_with(kMagic))
    user_error("{}:0: is no .npy file: its first bytes are not \\x93NUMPY",
               name);
  auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : 0u; };
  unsigned version = byte(6);
  if (version < 1 || version > 3)
    user_error("{}:6: .npy version {}; versions 1 to 3 are read", name,
               version);
  size_t start = version == 1 ? 10 : 12, length = 0;
  for (size_t i = start; i-- > 8;) length = length << 8 | byte(i);
  if (text.size() < start || text.size() - start < length)
    user_error("{}:{}: the file ends within its header", name, text.size());
  HeaderReader header(text.substr(start, length), int64_t(start), name);
  header.read();
  NpyArray a = header.array();
  a.offset = int64_t(start + length);
  int64_t have = int64_t(text.size()) - a.offset;
  if (a.count > have / a.bytes)
    user_error("{}:{}: the file ends after {} of {} integers", name,
               text.size(), have / a.bytes, a.count);
  if (a.count * a.bytes != have)
    user_error("{}:{}: {} bytes after the array's end", name,
               a.offset + a.count * a.bytes, have - a.count * a.bytes);
  return a;
}

}  // namespace moec
