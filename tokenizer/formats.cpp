#include "tokenizer/formats.h"

#include <filesystem>

#include "support/error.h"
#include "support/file.h"
#include "tokenizer/pattern.h"

namespace moec::bpe {
namespace {

enum class Format { HfJson, Tiktoken, Minbpe, Seed, Gpt2 };

Format format_of(const std::string& path) {
  std::string p = path;
  while (p.size() > 1 && p.back() == '/') p.pop_back();
  if (p.ends_with(".json")) return Format::HfJson;
  if (p.ends_with(".tiktoken")) return Format::Tiktoken;
  if (p.ends_with(".model")) return Format::Minbpe;
  if (p.ends_with(".seed")) return Format::Seed;
  if (std::filesystem::is_regular_file(p))
    usage_error(
        "{}: the name says no tokenizer format; use *.json, *.tiktoken, "
        "*.model, a folder, or a folder *.seed",
        path);
  return Format::Gpt2;
}

std::string pattern_of(const std::string& folder, const char* otherwise) {
  std::string file = folder + "/pattern.txt";
  if (!std::filesystem::exists(file)) return named_pattern(otherwise);
  std::string text = read_file(file);
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

void save_pattern(const Vocabulary& v, const std::string& folder,
                  const char* otherwise) {
  std::string file = folder + "/pattern.txt";
  if (v.pattern != named_pattern(otherwise))
    write_file_atomic(file, v.pattern + "\n");
  else
    std::filesystem::remove(file);
}

}  // namespace

void require_plain(const Vocabulary& v, const char* format) {
  auto refuse = [&](const char* what) {
    user_error("{} cannot hold {}; save it as tokenizer.json", format, what);
  };
  if (v.kind != Kind::Bpe) refuse("a character tokenizer");
  if (v.nfc) refuse("a normalizer");
  for (const AddedToken& a : v.added)
    if (!a.special) refuse("added tokens that are not special");
}

bool next_line(std::string_view& text, std::string_view& line) {
  if (text.empty()) return false;
  size_t end = text.find('\n');
  line = text.substr(0, end);
  text.remove_prefix(end == text.npos ? text.size() : end + 1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return true;
}

Vocabulary load_vocabulary(const std::string& path, std::string_view pattern) {
  Vocabulary v;
  switch (format_of(path)) {
    case Format::HfJson: v = read_hf_json(read_file(path), path); break;
    case Format::Tiktoken:
      if (pattern.empty())
        usage_error(
            "{}: a .tiktoken file holds no split pattern; name one with "
            "--pattern (gpt2, gpt4, cl100k, llama3, o200k)",
            path);
      return read_tiktoken(read_file(path), pattern_regex(pattern), path);
    case Format::Minbpe: v = read_minbpe(read_file(path), path); break;
    case Format::Seed:
      v = read_seed(read_file(path + "/merges.txt"), path + "/merges.txt");
      v.pattern = pattern_of(path, "gpt4");
      break;
    case Format::Gpt2:
      v = read_gpt2(read_file(path + "/vocab.json"),
                    read_file(path + "/merges.txt"), path);
      v.pattern = pattern_of(path, "gpt2");
      break;
  }
  if (!pattern.empty() && v.kind == Kind::Bpe)
    v.pattern = pattern_regex(pattern);
  return v;
}

void save_vocabulary(const Vocabulary& v, const std::string& path) {
  switch (format_of(path)) {
    case Format::HfJson: return write_file_atomic(path, write_hf_json(v));
    case Format::Tiktoken: return write_file_atomic(path, write_tiktoken(v));
    case Format::Minbpe: return write_file_atomic(path, write_minbpe(v));
    case Format::Seed: {
      std::string merges = write_seed_merges(v), vocabs = write_seed_vocabs(v);
      make_folders(path);
      write_file_atomic(path + "/merges.txt", merges);
      write_file_atomic(path + "/vocabs.txt", vocabs);
      return save_pattern(v, path, "gpt4");
    }
    case Format::Gpt2: {
      std::string vocab = write_gpt2_vocab(v), merges = write_gpt2_merges(v);
      make_folders(path);
      write_file_atomic(path + "/vocab.json", vocab);
      write_file_atomic(path + "/merges.txt", merges);
      return save_pattern(v, path, "gpt2");
    }
  }
}

}  // namespace moec::bpe
