#include "runtime/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "support/progress.h"

namespace moec {
namespace {

constexpr int64_t kHuge = int64_t(2) << 20;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

bool mapped(int64_t bytes) { return bytes >= kHuge; }

// A map whose address is a multiple of a huge page: one more is asked for,
// and what sticks out on both sides is given back.
std::byte* map_aligned(int64_t bytes) {
  int64_t want = round_up(bytes, 4096);
  void* p = mmap(nullptr, size_t(want + kHuge), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  auto base = int64_t(p), start = round_up(base, kHuge);
  if (start > base) munmap(p, size_t(start - base));
  int64_t tail = base + want + kHuge - (start + want);
  if (tail > 0) munmap(reinterpret_cast<void*>(start + want), size_t(tail));
  auto* out = reinterpret_cast<std::byte*>(start);
  madvise(out, size_t(want), MADV_HUGEPAGE);
  return out;
}

}  // namespace

Buffer::Buffer(int64_t bytes) : size_(bytes) {
  MOEC_CHECK(bytes >= 0, "{} bytes", bytes);
  if (mapped(bytes)) {
    data_ = map_aligned(bytes);
  } else {
    size_t n = size_t(round_up(std::max<int64_t>(bytes, 1), 64));
    data_ = static_cast<std::byte*>(std::aligned_alloc(64, n));
    if (data_) std::memset(data_, 0, n);
  }
  if (!data_)
    user_error("out of memory: the system has no {} for one buffer",
               format_bytes(double(bytes)));
}

Buffer::Buffer(std::span<const std::byte> memory,
               std::shared_ptr<const void> owner)
    : data_(const_cast<std::byte*>(memory.data())),
      size_(int64_t(memory.size())),
      owner_(std::move(owner)) {
  MOEC_CHECK(uintptr_t(data_) % 64 == 0 && owner_);
}

Buffer::~Buffer() {
  if (!data_ || owner_) return;
  if (mapped(size_))
    munmap(data_, size_t(round_up(size_, 4096)));
  else
    std::free(data_);
}

Buffer::Buffer(Buffer&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)),
      size_(std::exchange(o.size_, 0)),
      owner_(std::move(o.owner_)) {}

Buffer& Buffer::operator=(Buffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  std::swap(owner_, o.owner_);
  return *this;
}

}  // namespace moec
