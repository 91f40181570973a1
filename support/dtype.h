// Scalar types, shared by the IR, the runtime and the file formats.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace moec {

enum class DType : uint8_t { F64, F32, BF16, F16, I32, I64, U32, Bool };

inline constexpr int kNumDTypes = 8;

// "f32", "bool", ...
std::string_view dtype_name(DType);
std::optional<DType> parse_dtype(std::string_view);
// Bytes of one element; bool takes one.
int64_t dtype_size(DType);
bool is_float(DType);

// Round to nearest even; NaN stays NaN.
uint16_t f32_to_bf16(float);
float bf16_to_f32(uint16_t);
uint16_t f32_to_f16(float);
float f16_to_f32(uint16_t);

}  // namespace moec
