// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../../dtypes.h"
#include "../../softmax.h"
#include "entry.h"

namespace hipdecode::tile {

// One native register of 32-bit lanes. Thirty-two registers (AVX-512, NEON) hold 24 accumulators,
// sixteen (AVX2, SSE) hold 12: the shapes of the micro-kernels follow from that.
#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
inline constexpr bool kManyRegisters = true;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
inline constexpr bool kManyRegisters = false;
#elif defined(__aarch64__)
inline constexpr int kLanes = 4;
inline constexpr bool kManyRegisters = true;
#else
inline constexpr int kLanes = 4;
inline constexpr bool kManyRegisters = false;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t BitVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));
typedef int16_t ShortVec __attribute__((vector_size(kLanes * 2)));
typedef int8_t CharVec __attribute__((vector_size(kLanes)));

inline constexpr int kCacheLine = 64;
inline constexpr int16_t kFp8Fields =
    static_cast<int16_t>(0xbf80);  // sign, exponent, mantissa moved up by 7
inline constexpr int16_t kFp8NegativeZero = static_cast<int16_t>(0x8000);

TILE_FN Vec splat(float value) { return Vec{} + value; }

template <class V = Vec, class T>
TILE_FN V load(const T* source) {
  V value;
  std::memcpy(&value, source, sizeof(V));
  return value;
}

template <class V, class T>
TILE_FN void store(T* destination, V value) {
  std::memcpy(destination, &value, sizeof(V));
}

TILE_FN Vec max(Vec a, Vec b) { return a > b ? a : b; }

/// IEEE half to float, exact for every value.
TILE_FN Vec widen_half(HalfVec half) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)half);
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps((__m128i)half);
#else
  const BitVec bits = __builtin_convertvector(half, BitVec);
  const BitVec magnitude = bits & 0x7fff;
  const BitVec finite = (BitVec)((Vec)(magnitude << 13) * 0x1p112f);
  const BitVec special = 0x7f800000u | (magnitude & 0x3ff) << 13;
  return (Vec)((magnitude >= 0x7c00 ? special : finite) | (bits & 0x8000) << 16);
#endif
}

/// kLanes elements to float, exact for every value, NaN codes included.
template <abi::DType kType>
TILE_FN Vec widen(const typename Storage<kType>::Type* source) {
  if constexpr (kType == abi::DType::bf16) {
    return (Vec)(__builtin_convertvector(load<HalfVec>(source), BitVec) << 16);
  } else if constexpr (kType == abi::DType::fp16) {
    return widen_half(load<HalfVec>(source));
  } else {
    // e4m3 placed on top of fp16's fields differs only in exponent bias: 15 against 7 (fn) or 8
    // (fnuz)
    constexpr bool kFn = kType == abi::DType::fp8_e4m3fn;
    const ShortVec half =
        __builtin_convertvector(load<CharVec>(source), ShortVec) << 7 & (ShortVec{} + kFp8Fields);
    const ShortVec nan = kFn ? (half & 0x3f80) == 0x3f80 : half == kFp8NegativeZero;
    return widen_half((HalfVec)(half | (nan & 0x7fff))) * splat(kFn ? 0x1p8f : 0x1p7f);
  }
}

/// kLanes floats to bf16 or fp16, round to nearest even.
template <abi::DType kType>
TILE_FN void narrow(uint16_t* destination, Vec value) {
  if constexpr (kType == abi::DType::bf16) {
    const BitVec bits = (BitVec)value;
    const BitVec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const BitVec quiet = bits >> 16 | 0x40;
    store(destination, __builtin_convertvector(value == value ? rounded : quiet, HalfVec));
  } else {
#if defined(__AVX512F__)
    store(destination, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    store(destination, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes; ++i) destination[i] = float_to_fp16(value[i]);
#endif
  }
}

/// 2^x within 2 ulp for x in [-126, 127]; 0 below. Degree-6 minimax polynomial on [-0.5, 0.5].
TILE_FN Vec exp2(Vec x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(x) in the low mantissa bits
  const Vec clamped = x < -126.0f ? splat(-126.0f) : x;  // a NaN stays
  const Vec shifted = clamped + kRound;
  const Vec f = clamped - (shifted - kRound);
  Vec p = splat(1.5353362e-4f);
  p = p * f + 1.3398874e-3f;
  p = p * f + 9.6184370e-3f;
  p = p * f + 5.5503324e-2f;
  p = p * f + 2.4022648e-1f;
  p = p * f + 6.9314720e-1f;
  p = p * f + 1.0f;
  const Vec result = (Vec)((BitVec)p + ((BitVec)shifted << 23));
  return x < -126.0f ? Vec{} : result;
}

/// Scalar twins for per-row state, same values as the vector form.
TILE_FN float exp2(float x) { return exp2(splat(x))[0]; }
TILE_FN float log2(float x) { return std::log2(x); }

}  // namespace hipdecode::tile
