#include "frontend/parameters.h"

#include "support/error.h"
#include "support/hash.h"
#include "support/rng.h"

namespace moec::dsl {

Parameter Parameters::add(std::string name, Dims dims, Init init) {
  MOEC_CHECK(find(name) < 0, "parameter {} exists twice", name);
  all_.push_back({std::move(name), std::move(dims), init, DType::F32});
  return {size() - 1};
}

int Parameters::find(std::string_view name) const {
  for (int i = 0; i < size(); ++i)
    if (all_[i].name == name) return i;
  return -1;
}

i64 Parameters::count() const {
  i64 n = 0;
  for (auto& p : all_) n += Type{DType::F32, p.dims}.numel();
  return n;
}

At At::operator/(std::string_view name) const {
  At a = *this;
  if (!a.path_.empty()) a.path_ += '.';
  a.path_ += name;
  return a;
}

void initialize(const ParameterInfo& p, uint64_t seed, std::span<float> out) {
  auto stream = hash_text(p.name).lo;
  auto scale = float(p.init.scale);
  for (size_t i = 0; i < out.size(); ++i) {
    auto word = [&] { return random_word(seed, stream, i64(i)); };
    switch (p.init.kind) {
      case Init::Kind::Zeros: out[i] = 0; break;
      case Init::Kind::Ones: out[i] = 1; break;
      case Init::Kind::Normal: out[i] = scale * normal_from_word(word()); break;
      case Init::Kind::Uniform:
        out[i] = scale * (2 * uniform_from_word(word()) - 1);
        break;
    }
  }
}

}  // namespace moec::dsl
