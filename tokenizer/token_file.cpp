#include "tokenizer/token_file.h"

#include <sys/stat.h>

#include <cstring>

#include "support/error.h"
#include "tokenizer/text_file.h"

namespace moec {

TextFile::TextFile(const std::string& path) {
  struct stat info{};
  mapped_ = stat(path.c_str(), &info) != 0 || S_ISREG(info.st_mode);
  if (mapped_)
    map_ = MappedFile(path);
  else
    read_ = read_file(path);
}

IdType id_type(const std::string& name, int64_t vocab) {
  bool fits = vocab <= 65536;
  if (name == "u32" || (name.empty() && !fits)) return IdType::U32;
  if (name == "u16" && !fits)
    usage_error("--dtype u16 holds no ids of a vocabulary of {}; use u32",
                vocab);
  if (!name.empty() && name != "u16")
    usage_error("there is no id type \"{}\"; use u16 or u32", name);
  return IdType::U16;
}

int64_t encode_file(const Tokenizer& tokenizer, const std::string& text_path,
                    const std::string& out, IdType type,
                    const EncodeOptions& options) {
  TextFile text(text_path);
  AtomicFile file(out);
  int64_t n = 0;
  std::vector<uint16_t> narrow;
  tokenizer.encode_to(
      text.text(),
      [&](std::span<const uint32_t> ids) {
        n += int64_t(ids.size());
        if (type == IdType::U32) return file.write(std::as_bytes(ids));
        narrow.assign(ids.begin(), ids.end());
        file.write(std::as_bytes(std::span<const uint16_t>(narrow)));
      },
      options);
  file.commit();
  return n;
}

void decode_file(const Tokenizer& tokenizer, const std::string& ids_path,
                 IdType type, FunctionRef<void(std::string_view)> sink) {
  TextFile file(ids_path);
  std::string_view bytes = file.text();
  size_t width = type == IdType::U16 ? 2 : 4;
  if (bytes.size() % width)
    user_error("{}: {} bytes are no whole number of {}-byte ids", ids_path,
               bytes.size(), width);
  std::string part;
  for (size_t at = 0; at < bytes.size(); at += width) {
    uint32_t id = 0;
    std::memcpy(&id, bytes.data() + at, width);
    if (!tokenizer.has(id))
      user_error("{}:{}: id {} is no token; ids go from 0 to {}", ids_path, at,
                 id, tokenizer.vocab_size() - 1);
    part += tokenizer.token_bytes(id);
    if (part.size() > 1 << 16) {
      sink(part);
      part.clear();
    }
  }
  sink(part);
}

}  // namespace moec
