#include "codegen/cpu/object_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "support/hash.h"

namespace moec {

namespace {

constexpr char kMagic[8] = {'m', 'o', 'e', 'c', 'o', 'b', 'j', '1'};

struct Header {
  char magic[8];
  uint64_t key_bytes, object_bytes, checksum;  // of key and object
};

uint64_t checksum(std::string_view key, std::string_view object) {
  Hasher h;
  h.text(key);
  h.text(object);
  return h.digest().lo;
}

std::optional<std::string> read_all(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  std::string data;
  char buf[1 << 16];
  ssize_t n;
  while ((n = ::read(fd, buf, sizeof buf)) > 0) data.append(buf, n);
  ::close(fd);
  if (n < 0) return std::nullopt;
  return data;
}

}  // namespace

ObjectCache::ObjectCache(std::string dir) : dir_(std::move(dir)) {}

std::string ObjectCache::path(std::string_view key) const {
  return dir_ + "/" + hash_text(key).hex() + ".o";
}

std::optional<std::string> ObjectCache::load(std::string_view key) const {
  if (dir_.empty()) return std::nullopt;
  auto data = read_all(path(key));
  Header h;
  if (!data || data->size() < sizeof h) return std::nullopt;
  std::memcpy(&h, data->data(), sizeof h);
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) ||
      h.key_bytes != key.size() ||
      h.object_bytes != data->size() - sizeof h - key.size())
    return std::nullopt;
  std::string_view text(*data);
  std::string_view stored = text.substr(sizeof h, key.size());
  std::string_view object = text.substr(sizeof h + key.size());
  if (stored != key || h.checksum != checksum(key, object)) return std::nullopt;
  return std::string(object);
}

void ObjectCache::save(std::string_view key, std::string_view object) const {
  if (dir_.empty()) return;
  std::error_code ec;
  std::filesystem::create_directories(dir_, ec);
  static std::atomic<int> serial{0};
  std::string to = path(key);
  std::string temp = fmt::format("{}.{}.{}", to, ::getpid(), serial++);
  Header h;
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.key_bytes = key.size();
  h.object_bytes = object.size();
  h.checksum = checksum(key, object);
  std::FILE* f = std::fopen(temp.c_str(), "wb");
  if (!f) return;
  bool ok = std::fwrite(&h, sizeof h, 1, f) == 1 &&
            std::fwrite(key.data(), 1, key.size(), f) == key.size() &&
            std::fwrite(object.data(), 1, object.size(), f) == object.size();
  ok = std::fclose(f) == 0 && ok;
  if (!ok || std::rename(temp.c_str(), to.c_str())) std::remove(temp.c_str());
}

}  // namespace moec
