// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../../abi/dtype.h"
#include "entry.h"

namespace hipdecode::tile::nvptx {

/// Two floats as a word of bf16 or fp16, nearest even; `low` in the low half.
template <abi::DType kType>
TILE_FN uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (kType == abi::DType::bf16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

TILE_FN uint32_t pack_as(float low, float high, abi::DType type) {
  return type == abi::DType::bf16 ? pack<abi::DType::bf16>(low, high)
                                  : pack<abi::DType::fp16>(low, high);
}

/// destination[i] = value as fp32, bf16 or fp16.
TILE_FN void store_one(void* destination, int i, float value, abi::DType type) {
  if (type == abi::DType::fp32)
    static_cast<float*>(destination)[i] = value;
  else
    static_cast<uint16_t*>(destination)[i] = static_cast<uint16_t>(pack_as(value, 0, type));
}

/// Four fp8 e4m3fn of a word as fp16, exactly: the lower two, the upper two.
TILE_FN void widen(uint32_t word, uint32_t& low, uint32_t& high) {
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.rn.f16x2.e4m3x2 %0, l;\n"
      "cvt.rn.f16x2.e4m3x2 %1, h;\n}"
      : "=r"(low), "=r"(high)
      : "r"(word));
}

/// The two fp16 of a word.
TILE_FN float2 widen_half(uint32_t word) {
  float2 two;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
      : "=f"(two.x), "=f"(two.y)
      : "r"(word));
  return two;
}

}  // namespace hipdecode::tile::nvptx
