#include "models/moe/model_io.h"

#include <absl/container/flat_hash_set.h>

#include <cstring>

#include "frontend/optim.h"
#include "models/moe/data.h"
#include "support/error.h"
#include "support/file.h"

namespace moec::moe {
namespace {

TensorSpec spec(const std::string& name, const dsl::ParameterInfo& p) {
  Type t{p.stored, p.dims};
  return {name, p.stored, {p.dims.begin(), p.dims.end()}, t.bytes()};
}

// Copies elements of a file as f32; widens bf16 and f16.
void read_tensor(const Safetensors& file, const std::string& name,
                 const dsl::ParameterInfo& p, std::span<float> out) {
  std::vector<int64_t> dims(p.dims.begin(), p.dims.end());
  const TensorEntry* t = file.find(name);
  DType stored = t && t->dtype ? *t->dtype : DType::F32;
  if (stored != DType::BF16 && stored != DType::F16) stored = DType::F32;
  auto bytes = file.require(name, stored, dims);
  if (stored == DType::F32) {
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return;
  }
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t half;
    std::memcpy(&half, bytes.data() + 2 * i, 2);
    out[i] = stored == DType::BF16 ? bf16_to_f32(half) : f16_to_f32(half);
  }
}

// f32 values of any alignment to bf16, as f32_to_bf16 but in line: a model has
// many.
void round_to_bf16(std::span<const std::byte> in, std::span<std::byte> out) {
  auto* to = reinterpret_cast<uint16_t*>(out.data());
  for (size_t i = 0; i < in.size() / 4; ++i) {
    uint32_t u;
    std::memcpy(&u, in.data() + 4 * i, 4);
    bool nan = (u & 0x7fffffff) > 0x7f800000;
    uint32_t rounded = u + 0x7fff + ((u >> 16) & 1);
    to[i] = uint16_t((nan ? u | 0x400000 : rounded) >> 16);
  }
}

// Whether the file has matrices in bf16.
bool has_bf16(const Safetensors& file) {
  for (auto& t : file.tensors())
    if (t.dtype == DType::BF16 && t.dims.size() > 1) return true;
  return false;
}

void expect_only(const Safetensors& file,
                 const absl::flat_hash_set<std::string>& known) {
  for (auto& t : file.tensors())
    if (!known.contains(t.name))
      user_error(
          "{}: tensor {} is not the model's; the config that belongs to "
          "it has other layers",
          file.place(t), t.name);
}

using Naming = std::string (*)(std::string_view);
std::string same(std::string_view name) { return std::string(name); }

// Reads NAMING(parameter) for all parameters and namings; nothing else may be
// in the file.
void read_all(State& state, const dsl::Parameters& params,
              const std::filesystem::path& path,
              std::initializer_list<Naming> namings) {
  Safetensors file(path);
  absl::flat_hash_set<std::string> known;
  for (Naming naming : namings)
    for (auto& p : params.all()) {
      std::string name = naming(p.name);
      read_tensor(file, name, p, state.f32(name));
      known.insert(name);
    }
  expect_only(file, known);
}

std::vector<TensorView> views(const State& state, const dsl::Parameters& params,
                              std::initializer_list<Naming> namings) {
  std::vector<TensorView> out;
  for (Naming naming : namings)
    for (auto& p : params.all())
      for (auto& e : state.all())
        if (e.spec.name == naming(p.name))
          out.push_back({e.spec.name, e.spec.dtype, e.spec.dims,
                         e.data.bytes().first(size_t(e.spec.bytes))});
  return out;
}

}  // namespace

OpenedModel open_model(const std::filesystem::path& path,
                       const std::vector<std::string>& overrides) {
  OpenedModel m;
  if (path.extension() == ".toml") {
    m.config = load_config(path, overrides);
    if (m.config.model.vocab > 0) return m;
    m.tokenizer = make_tokenizer(m.config);
    resolve_vocab(m.config, *m.tokenizer);
    return m;
  }
  if (!std::filesystem::is_directory(path))
    user_error("{}: neither a config (*.toml) nor a checkpoint folder",
               path.string());
  m.checkpoint = open_checkpoint(path);
  m.config = load_config(m.checkpoint->config(), overrides);
  if (m.checkpoint->has_tokenizer())
    m.tokenizer = Tokenizer::load(m.checkpoint->tokenizer().string());
  if (m.checkpoint->has_hf())
    m.hf = parse_hf_carried(read_file(m.checkpoint->hf()),
                            m.checkpoint->hf().string());
  return m;
}

void load_parameters(State& state, const dsl::Parameters& params,
                     const OpenedModel& model) {
  if (!model.checkpoint) {
    init_parameters(state, params, uint64_t(model.config.train.seed));
    return;
  }
  for (auto& p : params.all()) state.add(spec(p.name, p));
  read_parameters(state, params, model.checkpoint->model());
}

void load_for_inference(State& state, Transformer& transformer,
                        const OpenedModel& model) {
  bool half = model.config.train.dtype == "bf16";
  if (!model.checkpoint) {
    if (half) transformer.store_weights(DType::BF16);
    return load_parameters(state, transformer.parameters(), model);
  }
  auto file = std::make_shared<Safetensors>(model.checkpoint->model());
  if (half || has_bf16(*file)) transformer.store_weights(DType::BF16);
  absl::flat_hash_set<std::string> known;
  for (auto& p : transformer.parameters().all()) {
    known.insert(p.name);
    TensorSpec s = spec(p.name, p);
    const TensorEntry* t = file->find(p.name);
    bool aligned = t && uintptr_t(t->bytes.data()) % 64 == 0;
    if (aligned && t->dtype == p.stored) {
      state.add_view(s, file->require(p.name, p.stored, s.dims), file);
    } else if (p.stored == DType::F32) {
      state.add(s);
      read_tensor(*file, p.name, p, state.f32(p.name));
    } else if (t && t->dtype == DType::F32) {
      round_to_bf16(file->require(p.name, DType::F32, s.dims), state.add(s));
    } else {
      std::vector<float> wide(size_t(s.bytes / 2));
      read_tensor(*file, p.name, p, wide);
      round_to_bf16(std::as_bytes(std::span(wide)), state.add(s));
    }
  }
  expect_only(*file, known);
}

void init_parameters(State& state, const dsl::Parameters& params,
                     uint64_t seed) {
  for (auto& p : params.all()) {
    state.add(spec(p.name, p));
    if (p.stored == DType::F32) {
      dsl::initialize(p, seed, state.f32(p.name));
      continue;
    }
    std::vector<float> wide(size_t(Type{DType::F32, p.dims}.numel()));
    dsl::initialize(p, seed, wide);
    round_to_bf16(std::as_bytes(std::span(wide)), state.add(spec(p.name, p)));
  }
}

void read_parameters(State& state, const dsl::Parameters& params,
                     const std::filesystem::path& file) {
  read_all(state, params, file, {same});
}

void add_moments(State& state, const dsl::Parameters& params) {
  for (Naming naming : {dsl::first_moment, dsl::second_moment})
    for (auto& p : params.all()) state.add(spec(naming(p.name), p));
}

void read_moments(State& state, const dsl::Parameters& params,
                  const std::filesystem::path& file) {
  read_all(state, params, file, {dsl::first_moment, dsl::second_moment});
}

std::vector<TensorView> parameter_views(const State& state,
                                        const dsl::Parameters& params) {
  return views(state, params, {same});
}
std::vector<TensorView> moment_views(const State& state,
                                     const dsl::Parameters& params) {
  return views(state, params, {dsl::first_moment, dsl::second_moment});
}

std::string checkpoint_config(const Config& config) {
  Config c = config;
  c.data.path.clear();
  return to_toml(c);
}

}  // namespace moec::moe
