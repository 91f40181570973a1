#include "codegen/tensor_io.h"

#include <cstring>

#include "support/error.h"

namespace moec {
namespace {

// Calls f with a zero of the C++ type that holds `t` in memory, and with
// functions from and to double.
template <class F>
void with_type(DType t, F f) {
  auto plain = [&]<class T>(T zero) {
    f(zero, [](T x) { return double(x); }, [](double x) { return T(x); });
  };
  switch (t) {
    case DType::F64: return plain(double{});
    case DType::F32: return plain(float{});
    case DType::I32: return plain(int32_t{});
    case DType::I64: return plain(int64_t{});
    case DType::U32: return plain(uint32_t{});
    case DType::Bool:
      return f(
          uint8_t{}, [](uint8_t x) { return double(x != 0); },
          [](double x) { return uint8_t(x != 0); });
    case DType::BF16:
      return f(
          uint16_t{}, [](uint16_t x) { return double(bf16_to_f32(x)); },
          [](double x) { return f32_to_bf16(float(x)); });
    case DType::F16:
      return f(
          uint16_t{}, [](uint16_t x) { return double(f16_to_f32(x)); },
          [](double x) { return f32_to_f16(float(x)); });
  }
}

}  // namespace

void store_tensor(const Tensor& t, std::span<std::byte> to) {
  MOEC_CHECK(i64(to.size()) >= t.type.bytes());
  with_type(t.type.dtype, [&](auto zero, auto, auto make) {
    for (size_t i = 0; i < t.data.size(); ++i) {
      auto x = make(t.data[i]);
      std::memcpy(to.data() + i * sizeof(zero), &x, sizeof(zero));
    }
  });
}

Tensor load_tensor(const Type& type, std::span<const std::byte> from) {
  MOEC_CHECK(i64(from.size()) >= type.bytes());
  Tensor t = Tensor::zeros(type);
  with_type(type.dtype, [&](auto zero, auto read, auto) {
    for (size_t i = 0; i < t.data.size(); ++i) {
      auto x = zero;
      std::memcpy(&x, from.data() + i * sizeof(zero), sizeof(zero));
      t.data[i] = read(x);
    }
  });
  return t;
}

}  // namespace moec
