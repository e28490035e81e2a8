// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

#include "../abi/dtype.h"

namespace hipdecode::tile {

/// Bit-exact scalar conversions. Formats: bf16 1-8-7, fp16 1-5-10 (IEEE), fp8 e4m3 1-4-3 with bias
/// 7 and NaN 0x7f/0xff (fn, OCP 8-bit floating point specification) or bias 8 and NaN 0x80 (fnuz).
constexpr float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

constexpr uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

constexpr float fp16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00)
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  // 2^112 moves the exponent from bias 15 to bias 127 and is exact for subnormals as well
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

constexpr uint16_t float_to_fp16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds at fp16's last place, ties to even
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign |
                               (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

constexpr float fp8_to_float(uint8_t bits, int bias, bool is_nan) {
  if (is_nan) return std::bit_cast<float>(0x7fc00000u);
  const int exponent = bits >> 3 & 15;
  const float mantissa = static_cast<float>(exponent == 0 ? bits & 7 : (bits & 7) + 8);
  const int power = (exponent == 0 ? 1 : exponent) - bias - 3;
  const float value = mantissa * std::bit_cast<float>(static_cast<uint32_t>(power + 127) << 23);
  return bits & 0x80 ? -value : value;
}

constexpr float fp8_e4m3fn_to_float(uint8_t bits) {
  return fp8_to_float(bits, 7, (bits & 0x7f) == 0x7f);
}
constexpr float fp8_e4m3fnuz_to_float(uint8_t bits) { return fp8_to_float(bits, 8, bits == 0x80); }

/// Nearest even, saturating; `most` is the code of the largest value.
constexpr uint8_t float_to_fp8(float value, int bias, uint8_t most, uint8_t nan, float largest) {
  if (value != value) return nan;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const float size = std::bit_cast<float>(magnitude);
  if (size >= largest) return sign | most;
  uint32_t code = 0;
  if (magnitude < static_cast<uint32_t>(128 - bias) << 23) {  // subnormal: steps of 2^(-bias - 2)
    const float steps = std::bit_cast<float>(static_cast<uint32_t>(bias + 2 + 127) << 23);
    code = std::bit_cast<uint32_t>(size * steps + 0x1p23f) - 0x4b000000u;
  } else {
    code = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) -
           (static_cast<uint32_t>(127 - bias) << 3);
  }
  const bool no_sign = code == 0 && nan == 0x80;  // fnuz: that is its NaN
  return no_sign ? 0 : static_cast<uint8_t>(sign | code);
}

constexpr uint8_t float_to_fp8_e4m3fn(float value) {
  return float_to_fp8(value, 7, 0x7e, 0x7f, 448);
}
constexpr uint8_t float_to_fp8_e4m3fnuz(float value) {
  return float_to_fp8(value, 8, 0x7f, 0x80, 240);
}

/// Storage type of one element.
template <abi::DType kType>
struct Storage {
  using Type = uint16_t;
};
template <>
struct Storage<abi::DType::fp8_e4m3fn> {
  using Type = uint8_t;
};
template <>
struct Storage<abi::DType::fp8_e4m3fnuz> {
  using Type = uint8_t;
};
template <>
struct Storage<abi::DType::fp32> {
  using Type = float;
};

template <abi::DType kType>
constexpr bool kIsFp8 = kType == abi::DType::fp8_e4m3fn || kType == abi::DType::fp8_e4m3fnuz;

}  // namespace hipdecode::tile
