// Host memory of tensors: zeroed, 64-byte aligned; from 2 MiB on in whole
// pages with the advice to use huge ones, which are real only once touched.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "support/error.h"

namespace moec {

class Buffer {
 public:
  Buffer() = default;
  // A UserError if the system has no such memory.
  explicit Buffer(int64_t bytes);
  // Memory of `owner`, a mapped file say, that nobody may write to; it has to
  // be aligned.
  Buffer(std::span<const std::byte> memory, std::shared_ptr<const void> owner);
  ~Buffer();
  Buffer(Buffer&& o) noexcept;
  Buffer& operator=(Buffer&& o) noexcept;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  std::span<std::byte> bytes() { return {data_, size_t(size_)}; }
  std::span<const std::byte> bytes() const { return {data_, size_t(size_)}; }

  // The whole buffer as elements of T.
  template <class T>
  std::span<T> as() {
    MOEC_CHECK(size_ % int64_t(sizeof(T)) == 0);
    return {reinterpret_cast<T*>(data_), size_t(size_) / sizeof(T)};
  }
  template <class T>
  std::span<const T> as() const {
    MOEC_CHECK(size_ % int64_t(sizeof(T)) == 0);
    return {reinterpret_cast<const T*>(data_), size_t(size_) / sizeof(T)};
  }

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  std::shared_ptr<const void> owner_;  // none: the buffer itself
};

}  // namespace moec
