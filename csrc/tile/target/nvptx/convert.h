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

/// Two floats as fp8 e4m3fn, nearest even; what is too large becomes the largest. `low` in the low
/// byte.
TILE_FN uint32_t narrow(float low, float high) {
  uint16_t bytes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bytes) : "f"(high), "f"(low));
  return bytes;
}

/// destination[i] = value as fp32, bf16, fp16 or fp8 e4m3fn.
TILE_FN void store_one(void* destination, int i, float value, abi::DType type) {
  if (type == abi::DType::fp32)
    static_cast<float*>(destination)[i] = value;
  else if (type == abi::DType::fp8_e4m3fn)
    static_cast<uint8_t*>(destination)[i] = static_cast<uint8_t>(narrow(value, 0));
  else
    static_cast<uint16_t*>(destination)[i] = static_cast<uint16_t>(pack_as(value, 0, type));
}

/// destination[i .. i + 3] = values as fp32, bf16, fp16 or fp8 e4m3fn.
TILE_FN void store_four(void* destination, int i, const float4& values, abi::DType type) {
  const auto to = reinterpret_cast<uint64_t>(destination);
  if (type == abi::DType::fp32 && to % 16 == 0) {
    *reinterpret_cast<float4*>(to + i * 4) = values;
  } else if (type != abi::DType::fp32 && to % 8 == 0) {
    if (type == abi::DType::fp8_e4m3fn)
      *reinterpret_cast<uint32_t*>(to + i) = narrow(values.x, values.y) | narrow(values.z, values.w)
                                                                              << 16;
    else
      *reinterpret_cast<uint2*>(to + i * 2) = {pack_as(values.x, values.y, type),
                                               pack_as(values.z, values.w, type)};
  } else {
    store_one(destination, i, values.x, type), store_one(destination, i + 1, values.y, type);
    store_one(destination, i + 2, values.z, type), store_one(destination, i + 3, values.w, type);
  }
}

/// Neighbours of a row that fill 16 bytes, to an address that is a multiple of their own size at
/// least.
TILE_FN void store_chunk_as(uint64_t to, const float4* from, abi::DType type) {
  const bool wide = type == abi::DType::fp32;
  const float4 low = from[0], high = from[wide ? 0 : 1];
  const uint4 packed = {pack_as(low.x, low.y, type), pack_as(low.z, low.w, type),
                        pack_as(high.x, high.y, type), pack_as(high.z, high.w, type)};
  const uint4 bits = {__float_as_uint(low.x), __float_as_uint(low.y), __float_as_uint(low.z),
                      __float_as_uint(low.w)};
  const uint4 words = wide ? bits : packed;
  if (to % sizeof(uint4) == 0) {
    *reinterpret_cast<uint4*>(to) = words;
    return;
  }
  const uint32_t of[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    auto* halves = reinterpret_cast<uint16_t*>(to) + 2 * i;
    halves[0] = static_cast<uint16_t>(of[i]);
    halves[1] = static_cast<uint16_t>(of[i] >> 16);
  }
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
