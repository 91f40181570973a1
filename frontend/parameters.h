// Parameters of a model: stable dotted names, shapes and initial values.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frontend/tensor.h"

namespace moec::dsl {

// How a parameter starts. Values are pure functions of seed, parameter name
// and element (support/rng.h).
struct Init {
  enum class Kind : uint8_t { Zeros, Ones, Normal, Uniform };
  Kind kind = Kind::Zeros;
  double scale = 0;  // Normal: standard deviation; Uniform: in [-scale, scale]
};
inline Init zeros() { return {Init::Kind::Zeros, 0}; }
inline Init ones() { return {Init::Kind::Ones, 0}; }
inline Init normal(double std) { return {Init::Kind::Normal, std}; }
inline Init uniform(double limit) { return {Init::Kind::Uniform, limit}; }

struct ParameterInfo {
  std::string name;  // "layers.0.attn.q_proj.weight"
  Dims dims;
  Init init;
  // How it stands in memory; the model computes with it as f32.
  DType stored = DType::F32;
};

class Parameters {
 public:
  // A taken name is an InternalError.
  Parameter add(std::string name, Dims dims, Init init);
  const std::vector<ParameterInfo>& all() const { return all_; }
  int size() const { return int(all_.size()); }
  const ParameterInfo& operator[](int i) const { return all_[i]; }
  void set_stored(int i, DType dtype) { all_[i].stored = dtype; }
  // Position of a name, or -1.
  int find(std::string_view name) const;
  // Elements of all of them.
  i64 count() const;

 private:
  std::vector<ParameterInfo> all_;
};

// A place in the tree of names: At(params) / "layers" / 0 / "attn".
class At {
 public:
  explicit At(Parameters& p) : params_(&p) {}
  At operator/(std::string_view name) const;
  At operator/(int index) const { return *this / std::to_string(index); }
  Parameter parameter(std::string_view name, Dims dims, Init init) const {
    return params_->add((*this / name).path_, std::move(dims), init);
  }
  const std::string& path() const { return path_; }

 private:
  Parameters* params_;
  std::string path_;
};

// The initial values of one parameter, row-major.
void initialize(const ParameterInfo&, uint64_t seed, std::span<float> out);

}  // namespace moec::dsl
