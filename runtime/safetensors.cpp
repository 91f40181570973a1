#include "runtime/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "support/error.h"
#include "support/json.h"

namespace moec {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

// The reference implementation's own limit on a header.
constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kMaxRank = 64;

struct FileType {
  const char* text;
  int bits;
  std::optional<DType> dtype;
};

constexpr FileType kTypes[] = {
    {"F64", 64, DType::F64},      {"F32", 32, DType::F32},
    {"BF16", 16, DType::BF16},    {"F16", 16, DType::F16},
    {"I32", 32, DType::I32},      {"I64", 64, DType::I64},
    {"U32", 32, DType::U32},      {"BOOL", 8, DType::Bool},
    {"U64", 64, std::nullopt},    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},    {"I8", 8, std::nullopt},
    {"U8", 8, std::nullopt},      {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt}, {"F8_E8M0", 8, std::nullopt},
    {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt}};

const FileType* find_type(std::string_view text) {
  for (const FileType& t : kTypes)
    if (text == t.text) return &t;
  return nullptr;
}

const FileType& file_type(DType dtype) {
  for (const FileType& t : kTypes)
    if (t.dtype == dtype) return t;
  internal_error(__FILE__, __LINE__, "file_type", "dtype without a name");
}

// Where a tensor's entry stands in the file.
int64_t entry_offset(std::string_view header, const std::string& name) {
  size_t at = header.find(json_quote(name));
  return 8 + int64_t(at == header.npos ? 0 : at);
}

// The header of one file while it is read.
struct Header {
  const fs::path& path;
  std::string_view text;  // the JSON
  uint64_t data_size = 0;

  template <class... A>
  [[noreturn]] void fail(const std::string& name, fmt::format_string<A...> f,
                         A&&... a) const {
    user_error("{}:{}: tensor {}: {}", path.string(), entry_offset(text, name),
               json_quote(name), fmt::format(f, std::forward<A>(a)...));
  }

  uint64_t number(const std::string& name, const json& v,
                  const char* what) const {
    if (!v.is_number_unsigned())
      fail(name, "{} must hold non-negative integers", what);
    return v.get<uint64_t>();
  }
};

// One entry, checked on its own; its place among others comes later.
TensorEntry read_entry(const Header& h, const std::string& name, const json& v,
                       std::span<const std::byte> data) {
  if (!v.is_object() || !v.contains("dtype") || !v.contains("shape") ||
      !v.contains("data_offsets") || v.size() != 3)
    h.fail(name, "an entry has exactly dtype, shape and data_offsets");
  if (!v["dtype"].is_string() || !v["shape"].is_array() ||
      !v["data_offsets"].is_array() || v["data_offsets"].size() != 2)
    h.fail(name, "dtype, shape or data_offsets has the wrong form");
  TensorEntry t;
  t.name = name;
  t.dtype_text = v["dtype"].get<std::string>();
  const FileType* type = find_type(t.dtype_text);
  if (!type) h.fail(name, "unknown dtype {}", json_quote(t.dtype_text));
  t.dtype = type->dtype;
  if (v["shape"].size() > kMaxRank)
    h.fail(name, "{} dimensions", v["shape"].size());
  uint64_t bits = uint64_t(type->bits);
  bool empty = false, overflow = false;
  for (const json& d : v["shape"]) {
    uint64_t n = h.number(name, d, "shape");
    if (n > uint64_t(INT64_MAX)) h.fail(name, "a dimension of {}", n);
    t.dims.push_back(int64_t(n));
    empty |= n == 0;
    overflow |= __builtin_mul_overflow(bits, n, &bits);
  }
  if (empty)
    bits = 0;
  else if (overflow)
    h.fail(name, "the shape {} overflows", dims_text(t.dims));
  uint64_t begin = h.number(name, v["data_offsets"][0], "data_offsets");
  uint64_t end = h.number(name, v["data_offsets"][1], "data_offsets");
  if (begin > end || end > h.data_size)
    h.fail(name, "data_offsets [{},{}] lie outside the {} bytes of data", begin,
           end, h.data_size);
  if (bits % 8 != 0 || bits / 8 != end - begin)
    h.fail(name, "{}{} takes {} bytes, data_offsets give {}", t.dtype_text,
           dims_text(t.dims), (bits + 7) / 8, end - begin);
  t.bytes = data.subspan(begin, end - begin);
  return t;
}

// Every byte of the data belongs to exactly one tensor.
void check_cover(const Header& h, std::span<const std::byte> data,
                 std::span<const TensorEntry> tensors) {
  std::vector<const TensorEntry*> order;
  for (auto& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(a->bytes.data(), a->bytes.size()) <
           std::pair(b->bytes.data(), b->bytes.size());
  });
  const std::byte* at = data.data();
  for (auto* t : order) {
    if (t->bytes.data() < at) h.fail(t->name, "overlaps the one before it");
    if (t->bytes.data() > at)
      h.fail(t->name, "{} bytes before it belong to no tensor",
             t->bytes.data() - at);
    at += t->bytes.size();
  }
  if (at != data.data() + data.size())
    user_error("{}:{}: {} bytes at the end belong to no tensor",
               h.path.string(), 8 + h.text.size() + size_t(at - data.data()),
               data.data() + data.size() - at);
}

}  // namespace

std::string dims_text(std::span<const int64_t> dims) {
  std::string out = "[";
  for (size_t i = 0; i < dims.size(); ++i)
    out += (i ? "," : "") + std::to_string(dims[i]);
  return out + "]";
}

Safetensors::Safetensors(const fs::path& path) {
  std::string name = path.filename().string();
  if (fs::is_directory(path)) {
    fs::path one = path / "model.safetensors",
             index = path / "model.safetensors.index.json";
    if (fs::exists(one))
      add_file(one);
    else if (fs::exists(index))
      add_shards(index);
    else
      user_error("{}: holds no model.safetensors and no {}", path.string(),
                 index.filename().string());
  } else if (name.ends_with(".index.json")) {
    add_shards(path);
  } else {
    add_file(path);
  }
  sort_by_name();
}

void Safetensors::add_file(const fs::path& path) {
  maps_.emplace_back(path);
  paths_.push_back(path);
  auto file = maps_.back().bytes();
  if (file.size() < 8)
    user_error("{}:0: {} bytes are too few for a safetensors file",
               path.string(), file.size());
  uint64_t length;
  std::memcpy(&length, file.data(), 8);
  if (length > kMaxHeader || length > file.size() - 8)
    user_error(
        "{}:0: the header is said to have {} bytes, the file has {}; it is "
        "truncated or not a safetensors file",
        path.string(), length, file.size());
  std::string_view text = maps_.back().text().substr(8, length);
  if (text.empty() || text[0] != '{')
    user_error("{}:8: the header must begin with '{{'", path.string());
  headers_.push_back(text);
  auto data = file.subspan(8 + length);
  Header h{path, text, data.size()};
  json doc = parse_json(text, path.string(), 8);
  std::vector<TensorEntry> found;
  for (auto& [name, v] : doc.items()) {
    if (name != "__metadata__") {
      found.push_back(read_entry(h, name, v, data));
      found.back().file = int32_t(paths_.size()) - 1;
      continue;
    }
    if (!v.is_object()) h.fail(name, "must be an object of strings");
    for (auto& [key, value] : v.items()) {
      if (!value.is_string()) h.fail(name, "must be an object of strings");
      if (paths_.size() == 1) metadata_[key] = value.get<std::string>();
    }
  }
  check_cover(h, data, found);
  std::move(found.begin(), found.end(), std::back_inserter(tensors_));
}

void Safetensors::add_shards(const fs::path& index) {
  std::string where = index.string();
  json doc = parse_json(read_file(index), where);
  if (!doc.is_object() || !doc.contains("weight_map") ||
      !doc["weight_map"].is_object())
    user_error("{}:0: has no object \"weight_map\"", where);
  std::map<std::string, std::string> file_of;
  std::set<std::string> files;
  for (auto& [name, file] : doc["weight_map"].items()) {
    if (!file.is_string())
      user_error("{}:0: tensor {}: its file must be a string", where,
                 json_quote(name));
    auto text = file.get<std::string>();
    // A shard lies beside its index; nothing leads out of the folder.
    if (text.empty() || text == ".." || text.find('/') != text.npos)
      user_error("{}:0: tensor {}: bad file name {}", where, json_quote(name),
                 json_quote(text));
    file_of[name] = text;
    files.insert(text);
  }
  for (auto& file : files) add_file(index.parent_path() / file);
  for (auto& t : tensors_) {
    auto it = file_of.find(t.name);
    std::string held = paths_[size_t(t.file)].filename().string();
    if (it == file_of.end() || it->second != held)
      user_error("{}: tensor {} is in this file but {} {}", place(t),
                 json_quote(t.name), where,
                 it == file_of.end() ? "does not list it"
                                     : "says it is in " + it->second);
    file_of.erase(it);
  }
  if (!file_of.empty())
    user_error("{}:0: tensor {} is not in {}", where,
               json_quote(file_of.begin()->first), file_of.begin()->second);
}

void Safetensors::sort_by_name() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](auto& a, auto& b) { return a.name < b.name; });
}

const TensorEntry* Safetensors::find(std::string_view name) const {
  auto it =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](auto& t, std::string_view n) { return t.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

std::string Safetensors::place(const TensorEntry& t) const {
  auto f = size_t(t.file);
  return fmt::format("{}:{}", paths_[f].string(),
                     entry_offset(headers_[f], t.name));
}

std::span<const std::byte> Safetensors::require(
    std::string_view name, DType dtype, std::span<const int64_t> dims) const {
  const TensorEntry* t = find(name);
  if (!t)
    user_error("{}: has no tensor {}", paths_[0].string(), json_quote(name));
  if (t->dtype != dtype || !std::ranges::equal(t->dims, dims))
    user_error("{}: tensor {} is {}{}, the model needs {}{}", place(*t),
               json_quote(name), t->dtype_text, dims_text(t->dims),
               file_type(dtype).text, dims_text(dims));
  return t->bytes;
}

void write_safetensors(const fs::path& path,
                       std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorView*> order;
  for (auto& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(-dtype_size(a->dtype), std::string_view(a->name)) <
           std::pair(-dtype_size(b->dtype), std::string_view(b->name));
  });
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + json(metadata).dump();
  int64_t at = 0;
  for (auto* t : order) {
    int64_t bytes = dtype_size(t->dtype);
    for (int64_t d : t->dims) bytes *= d;
    size_t held = t->bytes.size();
    for (auto piece : t->rest) held += piece.size();
    MOEC_CHECK(bytes == int64_t(held), "tensor {}", t->name);
    header += fmt::format(
        "{}{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
        header.size() > 1 ? "," : "", json_quote(t->name),
        file_type(t->dtype).text, dims_text(t->dims), at, at + bytes);
    at += bytes;
  }
  header += "}";
  header.append((64 - (8 + header.size()) % 64) % 64, ' ');
  auto length = uint64_t(header.size());
  AtomicFile out(path);
  out.write(std::as_bytes(std::span(&length, 1)));
  out.write(header);
  for (auto* t : order) {
    out.write(t->bytes);
    for (auto piece : t->rest) out.write(piece);
  }
  out.commit();
}

}  // namespace moec
